// BullMQ with a process for every job: executed/s and dispatch latency, as one line of JSON.
//
//   node bullmq.js REDIS_PORT PROGRAM JOBS SINGLES
//
// The producer is this process and the worker another, as in life. A job starts PROGRAM, feeds it the payload and reads
// its output through pipes. Redis keeps nothing on disk. Dispatch is from before the job is added until it runs.
'use strict';
const { fork, spawn } = require('node:child_process');
const { Queue, Worker } = require('bullmq');

const NAME = 'bench';
const CONCURRENCY = 16;
const BATCH = 100;
const PAYLOAD = '"0123456789abcdef0123456789abcd"';
const BETWEEN_SINGLES_MS = 15;

const [role, port] = process.argv[2] === 'worker' ? process.argv.slice(2) : ['producer', process.argv[2]];
const connection = { host: '127.0.0.1', port: Number(port), maxRetriesPerRequest: null };
// CLOCK_MONOTONIC: the same in every process of a machine.
const nowUs = () => Number(process.hrtime.bigint() / 1000n);

function run(program, payload) {
    return new Promise((resolve, reject) => {
        const child = spawn(program, { stdio: ['pipe', 'pipe', 'pipe'] });
        // spawn() returns once the program runs, or has failed to.
        const startedUs = nowUs();
        let output = '';
        child.stdout.on('data', (data) => { output += data; });
        child.on('error', reject);
        child.on('close', (code) => {
            if (code === 0 && output === payload) resolve(startedUs);
            else reject(new Error(`${program} ended with ${code} and printed ${output}`));
        });
        child.stdin.end(payload);
    });
}

async function worker(program) {
    let left = 0;
    let waits = [];
    process.on('message', ({ expect }) => { left = expect; waits = []; process.send({ expecting: expect }); });
    process.on('disconnect', () => process.exit(0));
    const work = async (job) => (await run(program, job.data.payload)) - job.data.sentUs;
    const bull = new Worker(NAME, work, { connection, concurrency: CONCURRENCY });
    bull.on('completed', (_job, waitUs) => {
        waits.push(waitUs);
        left -= 1;
        if (left === 0) process.send({ waits });
    });
    bull.on('failed', (_job, error) => { console.error(error); process.exit(1); });
    await bull.waitUntilReady();
    process.send({ ready: true });
}

async function producer(program, jobs, singles) {
    const child = fork(__filename, ['worker', port, program]);
    child.on('exit', (code) => { if (code !== 0) process.exit(1); });
    const answer = () => new Promise((resolve) => child.once('message', resolve));
    await answer();
    const queue = new Queue(NAME, { connection });
    const options = { removeOnComplete: true };
    const job = () => ({ name: 'echo', data: { payload: PAYLOAD, sentUs: nowUs() }, opts: options });
    const expect = async (count) => { child.send({ expect: count }); await answer(); };

    await expect(50);
    const warm = answer();
    await queue.addBulk(Array.from({ length: 50 }, job));
    await warm;

    const waits = [];
    for (let single = 0; single < singles; single += 1) {
        await expect(1);
        const done = answer();
        const { name, data, opts } = job();
        await queue.add(name, data, opts);
        waits.push((await done).waits[0]);
        await new Promise((resolve) => setTimeout(resolve, BETWEEN_SINGLES_MS));
    }

    await expect(jobs);
    const done = answer();
    const begun = nowUs();
    for (let added = 0; added < jobs; added += BATCH) {
        await queue.addBulk(Array.from({ length: Math.min(BATCH, jobs - added) }, job));
    }
    await done;
    const executed = jobs / ((nowUs() - begun) / 1e6);

    waits.sort((a, b) => a - b);
    const rank = (percent) => waits[Math.min(Math.floor(waits.length * percent / 100), waits.length - 1)];
    console.log(JSON.stringify({ executed_per_s: executed, dispatch_p50_us: rank(50), dispatch_p95_us: rank(95) }));
    child.disconnect();
    await queue.close();
}

const start = role === 'worker'
    ? worker(process.argv[4])
    : producer(process.argv[3], Number(process.argv[4]), Number(process.argv[5]));
start.catch((error) => { console.error(error); process.exit(1); });
