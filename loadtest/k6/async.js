// Asynchronous calls, sixteen at a time, as fast as they are accepted; each waits for one outcome in five hundred.
// Accepting is faster than executing, so the queue grows: teardown waits until the last ones are done.

import exec from 'k6/execution';
import { calibrate, callAsync, duration, expectSuccess, overEcho } from './flux.js';

export const options = {
    batchPerHost: 16,
    teardownTimeout: '180s',
    scenarios: {
        accept: { executor: 'constant-vus', vus: 16, duration, gracefulStop: '150s' },
    },
    thresholds: {
        wrong: ['rate==0'],
        over_echo: ['p(50)<20', 'p(99)<200'],
    },
};

export function setup() {
    return calibrate(16);
}

export default function (echo) {
    const accepted = callAsync();
    overEcho.add(accepted.timings.duration / echo[16]);
    if (accepted.status === 202 && exec.vu.iterationInInstance % 500 === 499) {
        expectSuccess(accepted.json('execution_id'));
    }
}

export function teardown() {
    // The queue is in order: once this one is done, all before it are.
    const last = callAsync();
    if (last.status === 202) expectSuccess(last.json('execution_id'));
}
