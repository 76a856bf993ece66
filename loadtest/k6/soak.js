// For hours, if asked to (DURATION=4h): a load that Flux bears easily, of every kind, and nothing may get worse. The last
// third is held to the same ratios as the first. RATE is arrivals per second.

import exec from 'k6/execution';
import { calibratePaced, callAsync, callSync, duration, expectSuccess, get, overEcho, seconds, wrong } from './flux.js';

const rate = Number(__ENV.RATE || 50);
const length = seconds(duration) * 1000;

export const options = {
    batchPerHost: 16,
    scenarios: {
        soak: { executor: 'constant-arrival-rate', rate, timeUnit: '1s', duration, preAllocatedVUs: 50, maxVUs: 200 },
    },
    thresholds: {
        wrong: ['rate==0'],
        dropped_iterations: ['count==0'],
        'over_echo{third:first}': ['p(50)<40', 'p(99)<400'],
        'over_echo{third:last}': ['p(50)<40', 'p(99)<400'],
    },
};

export function setup() {
    return calibratePaced(rate);
}

export default function (echo) {
    const done = (Date.now() - exec.scenario.startTime) / length;
    const third = done < 1 / 3 ? 'first' : done < 2 / 3 ? 'middle' : 'last';
    const draw = Math.random();
    if (draw < 0.6) {
        overEcho.add(callSync().timings.duration / echo, { third });
    } else if (draw < 0.9) {
        const accepted = callAsync();
        overEcho.add(accepted.timings.duration / echo, { third });
        if (accepted.status === 202 && draw > 0.85) expectSuccess(accepted.json('execution_id'));
    } else {
        wrong.add(get('/executions?function=echo&limit=20', 'list').status !== 200);
    }
}
