// What the load tests share: where Flux is, how to call it, and a measure that means the same on every machine.
//
// A threshold in milliseconds says more about the machine than about Flux. So setup() measures a bare echo server
// with the same generator, alone and with as many requests at a time as the test will have, and each request is
// recorded as a multiple of that (`over_echo`). In a closed loop throughput is concurrency / latency, so the same
// ratio bounds both. The exact figures are `flux bench`'s business; these bounds say "something broke".

import { sleep } from 'k6';
import http from 'k6/http';
import { Rate, Trend } from 'k6/metrics';

const url = need('FLUX_URL');
const key = need('FLUX_KEY');
const echoUrl = need('ECHO_URL');

export const duration = __ENV.DURATION || '15s';
export const payload = { text: 'twenty bytes or more' };

export const overEcho = new Trend('over_echo');
export const wrong = new Rate('wrong');

const CALIBRATION_MS = 2000;

function need(name) {
    if (!__ENV[name]) throw new Error(`${name} is not set: \`make load\` sets it`);
    return __ENV[name];
}

function params(name) {
    return {
        headers: { 'X-API-Key': key, 'Content-Type': 'application/json' },
        tags: { name },
        // Refusals are answers to be judged by the test, not by the client.
        responseCallback: http.expectedStatuses({ min: 200, max: 599 }),
        timeout: '60s',
    };
}

export function post(path, body, name) {
    return http.post(url + path, JSON.stringify(body), params(name));
}

export function get(path, name) {
    return http.get(url + path, params(name));
}

/** The median of the echo server's answers in milliseconds, `width` requests at a time. */
function echoMedian(width) {
    const request = { method: 'POST', url: echoUrl, body: JSON.stringify({ payload }), params: params('echo') };
    const batch = Array.from({ length: width }, () => request);
    const durations = [];
    for (const end = Date.now() + CALIBRATION_MS; Date.now() < end; ) {
        for (const response of http.batch(batch)) {
            if (response.status !== 200) throw new Error(`the echo server answered ${response.status}`);
            durations.push(response.timings.duration);
        }
    }
    durations.sort((a, b) => a - b);
    return durations[Math.floor(durations.length / 2)];
}

/** For setup(): the echo server's medians at these widths, and a first call of the function, so that none is cold. */
export function calibrate(...widths) {
    const first = post('/execute/echo', { payload }, 'first');
    if (first.status !== 200) throw new Error(`the function echo is not ready: ${first.status} ${first.body}`);
    const echo = {};
    for (const width of widths) echo[width] = echoMedian(width);
    console.info(`echo server, median ms by requests at a time: ${JSON.stringify(echo)}`);
    return echo;
}

/**
 * The same for a load that leaves pauses: the echo server's median at so many requests a second, one at a time. On a
 * machine that sleeps in between everything takes longer, the echo server too.
 */
export function calibratePaced(perSecond) {
    calibrate();
    const durations = [];
    for (let n = 0; n < 3 * perSecond && n < 150; n++) {
        sleep(1 / perSecond);
        const response = http.post(echoUrl, JSON.stringify({ payload }), params('echo'));
        if (response.status !== 200) throw new Error(`the echo server answered ${response.status}`);
        durations.push(response.timings.duration);
    }
    durations.sort((a, b) => a - b);
    const median = durations[Math.floor(durations.length / 2)];
    console.info(`echo server, median ms at ${perSecond} a second: ${median}`);
    return median;
}

/** A synchronous call of the echo function; true if it answered with what it was given. */
export function callSync() {
    const response = post('/execute/echo', { payload }, 'sync');
    const right = response.status === 200 && JSON.stringify(response.json('result')) === JSON.stringify(payload);
    wrong.add(!right);
    if (!right) console.error(`sync: ${response.status} ${response.body}`);
    return response;
}

/**
 * A synchronous call of a function that answers what it was given. Where it may be refused, a 429 or 503 that says when
 * to come again is right too.
 */
export function callOrRefused(name, mayBeRefused) {
    const response = post(`/execute/${name}`, { payload }, name);
    const answered = response.status === 200 && JSON.stringify(response.json('result')) === JSON.stringify(payload);
    const refused = [429, 503].includes(response.status) && Number(response.headers['Retry-After']) > 0;
    const right = answered || (mayBeRefused && refused);
    wrong.add(!right);
    if (!right) console.error(`${name}: ${response.status} ${response.body}`);
    return response;
}

/** A duration of k6's such as `90s`, `15m` or `4h`, in seconds. */
export function seconds(text) {
    const [, count, unit] = /^([0-9]+)(s|m|h)$/.exec(text) || [];
    if (!unit) throw new Error(`DURATION is ${text}: write 90s, 15m or 4h`);
    return Number(count) * { s: 1, m: 60, h: 3600 }[unit];
}

/** An asynchronous one; the response of its acceptance. */
export function callAsync() {
    const response = post('/execute/echo/async', { payload }, 'async');
    wrong.add(response.status !== 202);
    if (response.status !== 202) console.error(`async: ${response.status} ${response.body}`);
    return response;
}

/** Waits for an accepted execution's outcome, and records whether it is a success. */
export function expectSuccess(id) {
    for (let tries = 0; tries < 4; tries++) {
        const response = get(`/executions/${id}?wait=30s`, 'outcome');
        const status = response.status === 200 ? response.json('status') : `${response.status}`;
        if (status === 'running') continue;
        wrong.add(status !== 'success');
        if (status !== 'success') console.error(`${id}: ${response.body}`);
        return;
    }
    wrong.add(true);
    console.error(`${id} had no outcome after two minutes`);
}
