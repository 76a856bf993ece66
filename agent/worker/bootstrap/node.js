'use strict';
// Serves a Flux function's invocations, one after another, on descriptor 3. See agent/worker for the frames.
const { AsyncLocalStorage } = require('async_hooks');
const fs = require('fs');
const path = require('path');
const { Socket } = require('net');
const { createRequire } = require('module');
const { pathToFileURL } = require('url');

const PROTOCOL = 2;
const LOAD = 2;
const RESEED = 4;
const HELLO = 16;
const READY = 17;
const FAILED = 18;
const RESULT = 19;
const ERROR = 20;
const RESULT_LIMIT = 16 * 1024 * 1024;
// How long a thread that is about to end is waited for before it counts as left.
const SETTLE_MS = 100;
const LOADING = -1;
const NOBODY = 0;
// In place of a number of threads: this process ends after its answer.
const ENDS = 0xffffffff;
// The same: what an earlier invocation began failed meanwhile, and this process is not to be used again.
const SPOILED = 0xfffffffe;

const channel = new Socket({ fd: 3, readable: true, writable: true });
const invocations = new AsyncLocalStorage();
const folder = process.cwd();
let count = 0;
let current = LOADING;
let began = null;
let dropped = 0;
let spoiled = false;
let handler = null;

function send(kind, parts, then) {
  const length = parts.reduce((sum, part) => sum + part.length, 1);
  const head = Buffer.allocUnsafe(5);
  head.writeUInt32BE(length, 0);
  head[4] = kind;
  channel.write(Buffer.concat([head, ...parts]), then);
}

// What is printed by a timer or a promise of an earlier invocation is nobody's any more.
function counts() {
  const of = invocations.getStore();
  return current !== NOBODY && (of === undefined || of === current);
}

// Whether this is the course of an earlier invocation, while another one is served.
function isBelated() {
  const of = invocations.getStore();
  return current > NOBODY && of !== undefined && of !== current;
}

// It ends the process when the invocation that is served is through, and what called it at once.
function guardExit() {
  const { exit } = process;
  process.exit = function (...code) {
    if (!isBelated()) return exit.apply(this, code);
    spoiled = true;
    throw new Error('process.exit() by what an earlier invocation began');
  };
}

const length = (data) => (typeof data === 'string' ? Buffer.byteLength(data) : (data?.byteLength ?? 0));

function drop(data) {
  dropped += length(data);
}

const flushes = [];

// A write ends when the pipe has it all: an answer, or an end, that overtakes what was printed before it would lose that.
function guardWrites() {
  for (const stream of [process.stdout, process.stderr]) {
    stream._handle?.setBlocking?.(true);
    const write = stream.write;
    flushes.push(() => {
      while (stream.writableCorked > 0) stream.uncork();
      if (stream.writableLength === 0 || stream.destroyed || stream.writableEnded) return undefined;
      return new Promise((done) => write.call(stream, '', done));
    });
    stream.write = function (chunk, encoding, callback) {
      if (counts()) return write.call(this, chunk, encoding, callback);
      drop(chunk);
      const done = typeof encoding === 'function' ? encoding : callback;
      if (typeof done === 'function') process.nextTick(done);
      return true;
    };
  }
  const { writeSync, write } = fs;
  fs.writeSync = function (fd, data, ...rest) {
    if ((fd === 1 || fd === 2) && !counts()) {
      drop(data);
      return length(data);
    }
    return writeSync.call(this, fd, data, ...rest);
  };
  fs.write = function (fd, data, ...rest) {
    if ((fd !== 1 && fd !== 2) || counts()) return write.call(this, fd, data, ...rest);
    drop(data);
    const done = rest.at(-1);
    if (typeof done === 'function') process.nextTick(done, null, length(data), data);
  };
}

// A child that shares them may have made the pipes non-blocking, and then what is printed waits here.
async function flush() {
  for (const one of flushes) await one();
}

// Threads that invocations began and that live. What the module began when it was loaded is its own.
const threads = new Set();
process.on('worker', (worker) => {
  if (invocations.getStore() === undefined) return;
  threads.add(worker);
  worker.once('exit', () => threads.delete(worker));
});

async function settle() {
  // Of a thread that was begun just now the process hears in its next tick.
  await new Promise((done) => process.nextTick(done));
  if (threads.size === 0) return;
  const ends = [...threads].map((worker) => new Promise((done) => worker.once('exit', done)));
  await Promise.race([Promise.all(ends), new Promise((done) => setTimeout(done, SETTLE_MS))]);
}

function fault(error) {
  const isError = error instanceof Error || (typeof error === 'object' && error !== null && 'stack' in error);
  const type = isError ? (error.name ?? error.constructor?.name ?? 'Error') : typeof error;
  let message;
  try {
    message = isError ? String(error.message) : typeof error === 'object' ? JSON.stringify(error) : String(error);
  } catch {
    message = 'a value that cannot be printed';
  }
  const stack = isError ? String(error.stack ?? '') : '';
  const own = stack.split('\n').filter((line) => !line.includes('flux-worker.js') && !line.includes('(node:'));
  return { type: String(type).slice(0, 256), message: message.slice(0, 8192), stack: own.join('\n').slice(0, 32768) };
}

const json = (value) => Buffer.from(JSON.stringify(value));

function used(left) {
  const now = process.resourceUsage();
  const cpu = began === null ? 0 : now.userCPUTime + now.systemCPUTime - began.userCPUTime - began.systemCPUTime;
  const bytes = Buffer.allocUnsafe(28);
  bytes.writeBigUInt64BE(BigInt(cpu), 0);
  bytes.writeBigUInt64BE(BigInt(now.maxRSS) * 1024n, 8);
  bytes.writeUInt32BE(left, 16);
  bytes.writeBigUInt64BE(BigInt(dropped), 20);
  return bytes;
}

// A name that is not there is the function's owner's slip, and no exception of its code.
class Missing extends Error {}

async function load(entry) {
  const file = entry.files.find((name) => fs.statSync(name, { throwIfNoEntry: false })?.isFile());
  if (file === undefined) {
    throw new Missing(`the archive has no file ${entry.files.map((name) => `\`${name}\``).join(' or ')}`);
  }
  const full = path.resolve(file);
  let module;
  try {
    module = file.endsWith('.mjs') ? await importModule(pathToFileURL(full)) : createRequire(full)(full);
  } catch (error) {
    if (error?.code !== 'ERR_REQUIRE_ESM') throw error;
    module = await importModule(pathToFileURL(full));
  }
  const name = entry.function;
  const found =
    name != null
      ? (module?.[name] ?? module?.default?.[name])
      : typeof module === 'function'
        ? module
        : (module?.default ?? module?.handler);
  if (typeof found === 'function') return found;
  if (name == null && typeof found?.handler === 'function') return found.handler;
  throw new Missing(
    name != null
      ? `\`${file}\` has no function \`${name}\`: export it as \`exports.${name}\``
      : `\`${file}\` exports no function: \`module.exports = async (payload, context) => …\`, or \`exports.handler\``,
  );
}

function payloadOf(body) {
  if (body.length === 0) return null;
  const text = body.toString();
  try {
    return JSON.parse(text);
  } catch {
    return Buffer.from(text).equals(body) ? text : body;
  }
}

class Context {
  constructor(call) {
    this.executionId = call.execution_id;
    this.function = call.function;
    this.version = call.version;
    this.attempt = call.attempt;
    this.deadline = call.deadline_ms == null ? null : new Date(call.deadline_ms);
    this.args = call.args;
    this.traceparent = call.traceparent;
  }

  // Milliseconds until the deadline; null is without limit.
  remainingMs() {
    return this.deadline === null ? null : Math.max(0, this.deadline - Date.now());
  }
}

async function invoke(body) {
  const size = body.readUInt32BE(0);
  const call = JSON.parse(body.toString('utf8', 4, 4 + size));
  const number = ++count;
  current = number;
  began = process.resourceUsage();
  dropped = 0;
  let kind = RESULT;
  let answer;
  try {
    const value = await invocations.run(number, handler, payloadOf(body.subarray(4 + size)), new Context(call));
    try {
      answer = Buffer.from(JSON.stringify(value) ?? 'null');
    } catch (error) {
      kind = ERROR;
      answer = json({ type: error.name, message: `the handler's return value is not JSON: ${error.message}`, stack: '' });
    }
    if (answer.length > RESULT_LIMIT) {
      const message = `the handler's return value has ${answer.length} bytes as JSON; at most ${RESULT_LIMIT} are taken`;
      kind = ERROR;
      answer = json({ type: 'ResultTooLarge', message, stack: '' });
    }
  } catch (error) {
    kind = ERROR;
    answer = json(fault(error));
  }
  await settle();
  await flush();
  // Something that nobody caught has answered meanwhile.
  if (current !== number) return;
  current = NOBODY;
  // Where it stands belongs to the process, and a handler may have changed it.
  if (process.cwd() !== folder) process.chdir(folder);
  send(kind, [used(spoiled ? SPOILED : threads.size), answer]);
}

async function sayAndEnd(kind, parts) {
  await flush();
  send(kind, parts, () => process.exit(1));
}

// After this the state of the process is unknown: it says why, and ends. An invocation that is not to blame is served to
// its end first.
process.on('uncaughtException', (error) => {
  if (isBelated()) {
    spoiled = true;
    return;
  }
  const during = current;
  current = NOBODY;
  if (during === LOADING) void sayAndEnd(FAILED, [json(fault(error))]);
  else if (during !== NOBODY) void sayAndEnd(ERROR, [used(ENDS), json(fault(error))]);
  else process.exit(1);
});

async function begin(body) {
  try {
    handler = await load(JSON.parse(body.toString()));
  } catch (error) {
    current = NOBODY;
    void sayAndEnd(FAILED, [json({ ...fault(error), missing: error instanceof Missing })]);
    return;
  }
  current = NOBODY;
  send(READY, []);
  next();
}

let buffered = [];
let size = 0;
let need = 4;

// One frame at a time: the agent sends the next after the answer, but for the first invocation, which waits here until
// the handler is loaded.
function next() {
  if (size < need) return;
  if (buffered.length > 1) buffered = [Buffer.concat(buffered, size)];
  const all = buffered[0];
  need = 4 + all.readUInt32BE(0);
  if (size < need || (all[4] !== LOAD && handler === null)) return;
  const body = all.subarray(5, need);
  buffered = need < size ? [all.subarray(need)] : [];
  size -= need;
  need = 4;
  if (all[4] === RESEED) {
    reseed(body);
    return next();
  }
  void (all[4] === LOAD ? begin(body) : invoke(body));
}

// This process may be the clone of another: both would draw the same numbers. V8's own generator cannot be set, so it is replaced
// (by sfc32).
function reseed(seed) {
  let [a, b, c, d] = [0, 4, 8, 12].map((at) => seed.readInt32BE(at));
  Math.random = () => {
    const t = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + t) | 0;
    return (t >>> 0) / 4294967296;
  };
}

channel.on('data', (data) => {
  buffered.push(data);
  size += data.length;
  next();
});
channel.on('end', () => process.exit(0));
channel.on('error', () => process.exit(0));
guardWrites();
guardExit();
const hello = Buffer.alloc(2);
hello.writeUInt16BE(PROTOCOL, 0);
send(HELLO, [hello, Buffer.from(process.versions.node)]);
