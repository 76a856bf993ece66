// What Node programs do every day, each on a line of its own when it worked.
const { Worker, isMainThread, parentPort } = require('node:worker_threads');
if (!isMainThread) return parentPort.postMessage(42);
if (process.send) return process.send('here', () => process.disconnect());
const assert = require('node:assert'), child = require('node:child_process'), crypto = require('node:crypto');
const dns = require('node:dns/promises'), fs = require('node:fs'), http = require('node:http'), os = require('node:os');
const { once } = require('node:events'), path = require('node:path'), zlib = require('node:zlib');

(async () => {
    const worker = new Worker(__filename);
    assert.equal((await once(worker, 'message'))[0], 42);
    console.log('worker threads');
    let sum = 0;
    for (let i = 0; i < 5e6; i++) sum = (sum + i * 31) | 0;
    const wasm = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 127, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0,
        10, 6, 1, 4, 0, 65, 42, 11]);
    assert.equal((await WebAssembly.instantiate(wasm)).instance.exports.f(), 42);
    console.log('compiled code');
    assert.equal(child.execFileSync('/bin/echo', ['hi']).toString(), 'hi\n');
    assert.equal((await once(child.spawn('/bin/sh', ['-c', 'exit 3']), 'exit'))[0], 3);
    assert.equal((await once(child.fork(__filename), 'message'))[0], 'here');
    console.log('child processes');
    const server = http.createServer((_, answer) => answer.end('hello')).listen(0, '127.0.0.1');
    await once(server, 'listening');
    assert.equal(await (await fetch(`http://127.0.0.1:${server.address().port}`)).text(), 'hello');
    server.closeAllConnections();
    server.close();
    assert(await dns.lookup('localhost') && os.networkInterfaces().lo);
    console.log('http and names');
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'x'));
    const watcher = fs.watch(directory);
    await fs.promises.writeFile(path.join(directory, 'f'), 'x');
    watcher.close();
    assert.equal((await fs.promises.readFile(path.join(directory, 'f'))).toString(), 'x');
    console.log('files');
    assert(os.userInfo().username && os.cpus() && os.hostname());
    crypto.scryptSync('x', 'y', 16);
    assert.equal(zlib.gunzipSync(zlib.gzipSync('x')).toString(), 'x');
    console.log('the rest');
})().catch((error) => { console.error(error); process.exit(1); });
