// A spike: a steady trickle, then for a while far more than Flux can run, then the trickle again. What is refused in the
// spike says when to come again; before and after it nothing is refused, and calls take as long after it as before.
// PEAK is arrivals per second in the spike.

import { Trend, Counter } from 'k6/metrics';

import { calibratePaced, callOrRefused, duration, seconds } from './flux.js';

const peak = Number(__ENV.PEAK || 2000);
const calm = 20;
const spikeAt = seconds(duration);
// A refused caller is told to come again in a second; so long after the spike nothing of it may be felt.
const againAt = 2 * spikeAt + 2;

const before = new Trend('over_echo_before');
const after = new Trend('over_echo_after');
const refused = new Counter('refused');

const trickle = (exec, startTime) => ({
    executor: 'constant-arrival-rate', exec, startTime: `${startTime}s`, duration,
    rate: calm, timeUnit: '1s', preAllocatedVUs: 20, maxVUs: 50,
});

export const options = {
    batchPerHost: 16,
    scenarios: {
        before: trickle('calmBefore', 0),
        spike: {
            executor: 'constant-arrival-rate', exec: 'spike', startTime: `${spikeAt}s`, duration,
            rate: peak, timeUnit: '1s', preAllocatedVUs: 200, maxVUs: 1000,
        },
        after: trickle('calmAfter', againAt),
    },
    thresholds: {
        wrong: ['rate==0'],
        over_echo_before: ['p(50)<40', 'p(95)<250'],
        over_echo_after: ['p(50)<40', 'p(95)<250'],
    },
};

export function setup() {
    return calibratePaced(calm);
}

export function calmBefore(echo) {
    before.add(callOrRefused('echo', false).timings.duration / echo);
}

export function spike() {
    if (callOrRefused('echo_exit', true).status !== 200) refused.add(1);
}

export function calmAfter(echo) {
    after.add(callOrRefused('echo', false).timings.duration / echo);
}
