// What a service sees: calls arrive at their own pace, whether the last ones were answered or not (an open loop),
// seven in ten synchronous, two asynchronous, one reading records. RATE is arrivals per second.

import { calibrate, callAsync, callSync, duration, expectSuccess, get, overEcho, wrong } from './flux.js';

const rate = Number(__ENV.RATE || 200);

export const options = {
    batchPerHost: 16,
    scenarios: {
        arrivals: {
            executor: 'constant-arrival-rate',
            rate,
            timeUnit: '1s',
            duration,
            preAllocatedVUs: 100,
            maxVUs: 400,
        },
    },
    thresholds: {
        wrong: ['rate==0'],
        // An arrival that found no free caller: Flux was slower than the load for long.
        dropped_iterations: ['count==0'],
        'over_echo{kind:sync}': ['p(50)<25', 'p(99)<250'],
        'over_echo{kind:async}': ['p(50)<25', 'p(99)<250'],
    },
};

export function setup() {
    return calibrate(1);
}

export default function (echo) {
    const draw = Math.random();
    if (draw < 0.7) {
        overEcho.add(callSync().timings.duration / echo[1], { kind: 'sync' });
    } else if (draw < 0.9) {
        const accepted = callAsync();
        overEcho.add(accepted.timings.duration / echo[1], { kind: 'async' });
        if (accepted.status === 202 && draw > 0.88) expectSuccess(accepted.json('execution_id'));
    } else {
        const page = get('/executions?function=echo&limit=20', 'list');
        wrong.add(page.status !== 200);
    }
}
