#!/usr/bin/env node
// {{name}}: greets whoever the payload names.
//
// The payload arrives on standard input. What is printed to standard output is the result if it is JSON; what is
// printed to standard error is shown beside it. An exit status other than 0 is a failure.
'use strict';

const fs = require('fs');

function readPayload() {
  const text = fs.readFileSync(0, 'utf8');
  if (!text.trim()) return null;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

async function handle(payload) {
  const name = typeof payload === 'string' ? payload : (payload?.name ?? 'world');
  return { hello: name, attempt: Number(process.env.FLUX_ATTEMPT ?? 1) };
}

handle(readPayload()).then(
  (result) => process.stdout.write(JSON.stringify(result)),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
