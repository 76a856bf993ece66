// {{name}}: greets whoever the payload names.
//
// The function is called with the payload (any JSON) and a context, and what it returns (any JSON) is the result. An exception is
// a failure, with its stack. What is printed is shown as output. This module is loaded once; then its process serves call after
// call and waits `keep_warm` seconds for the next, so clients and caches belong up here.
'use strict';

module.exports = async (payload, context) => {
  const name = typeof payload === 'string' ? payload : (payload?.name ?? 'world');
  console.log(`${context.executionId} greets ${name}`);
  return { hello: name, attempt: context.attempt };
};
