// Synchronous calls of a static native echo: one at a time, then sixteen.

import { calibrate, callSync, duration, overEcho } from './flux.js';

export const options = {
    batchPerHost: 16,
    scenarios: {
        one: { executor: 'constant-vus', exec: 'one', vus: 1, duration },
        sixteen: { executor: 'constant-vus', exec: 'sixteen', vus: 16, duration, startTime: duration },
    },
    thresholds: {
        wrong: ['rate==0'],
        'over_echo{scenario:one}': ['p(50)<20', 'p(99)<150'],
        'over_echo{scenario:sixteen}': ['p(50)<40', 'p(99)<300'],
    },
};

export function setup() {
    return calibrate(1, 16);
}

export function one(echo) {
    overEcho.add(callSync().timings.duration / echo[1]);
}

export function sixteen(echo) {
    overEcho.add(callSync().timings.duration / echo[16]);
}
