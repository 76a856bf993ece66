'use strict';
// Greets the name in the payload, and counts how often this process has done so.

let served = 0;

module.exports = async (payload, context) => {
  served += 1;
  console.log(`execution ${context.executionId}, ${context.remainingMs()} ms left`);
  return { hello: payload?.name ?? 'world', served };
};
