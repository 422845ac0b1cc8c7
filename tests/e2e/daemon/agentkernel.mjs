import assert from "node:assert/strict";
import { AgentKernel, NotFoundError, ServerError, ValidationError } from "CLIENT";

const client = new AgentKernel();
assert.equal(await client.health(), "ok");
assert.equal((await client.run(["echo", "hello"])).output, "hello\n");
await assert.rejects(client.run(["sh", "-c", "exit 3"]), (e) => e instanceof ServerError && e.message === "Command exited with code 3: ");

const events = [];
let first;
for await (const event of client.runStream(["sh", "-c", "echo first; sleep 2; echo last >&2; exit 5"])) {
  if (event.type === "output") first ??= Date.now();
  events.push(event);
}
assert.ok(Date.now() - first > 1000, "it came all at once");
assert.deepEqual(events.map((e) => e.type), ["started", "output", "output", "done"]);
assert.deepEqual(events[2].data, { data: "last\n", stream: "stderr" });
assert.equal(events[3].data.exit_code, 5);

const { results } = await client.batchRun([{ command: ["echo", "1"] }, { command: ["false"] }]);
assert.equal(results[0].output, "1\n");
assert.equal(results[1].output, null);

const sandbox = await client.sandbox("node-test", { image: "node:20-alpine", profile: "restrictive" });
assert.equal((await sandbox.info()).status, "running");
assert.equal((await sandbox.run(["pwd"], { workdir: "/tmp" })).output, "/tmp\n");
assert.equal((await sandbox.writeFiles({ "/app/index.js": "hi" })).written, 1);
assert.equal((await client.readFile("node-test", "app/index.js")).content, "hi");
assert.match(await client.writeFile("node-test", "app/x", "1"), /^Wrote 1 bytes/);
assert.match(await client.deleteFile("node-test", "app/x"), /^Deleted/);
await assert.rejects(client.readFile("node-test", "app/x"), NotFoundError);

const command = await client.execDetached("node-test", ["sh", "-c", "echo out; exec sleep 1000"]);
while ((await client.detachedLogs("node-test", command.id)).stdout !== "out\n") await new Promise((r) => setTimeout(r, 50));
assert.equal((await client.detachedStatus("node-test", command.id)).status, "running");
assert.equal((await client.detachedList("node-test")).length, 1);
await client.detachedKill("node-test", command.id);
assert.equal((await client.detachedStatus("node-test", command.id)).exit_code, 137);
assert.ok((await client.extendTtl("node-test", { by: "30m" })).expires_at.endsWith("Z"));
assert.deepEqual(Object.keys(await client.detachedLogs("node-test", command.id)), ["stdout"]);

// Snapshots.
await client.writeFile("node-test", "app/kept", "one");
assert.equal((await client.takeSnapshot({ sandbox: "node-test", name: "snap" })).sandbox, "node-test");
assert.match((await client.takeSnapshot({ sandbox: "node-test" })).name, /^node-test-/);
assert.equal((await client.listSnapshots()).length, 2);
assert.equal((await client.getSnapshot("snap")).backend, "ringfence");
await client.writeFile("node-test", "app/kept", "two");
const restored = await client.restoreSnapshot("snap");
assert.deepEqual([restored.name, restored.status], ["node-test-restored", "stopped"]);
await fetch(`${process.env.AGENTKERNEL_BASE_URL}/sandboxes/node-test-restored/start`, { method: "POST" });
assert.equal((await client.readFile("node-test-restored", "app/kept")).content, "one");
assert.equal((await client.readFile("node-test", "app/kept")).content, "two");
await client.removeSandbox("node-test-restored");
for (const { name } of await client.listSnapshots()) await client.deleteSnapshot(name);
await assert.rejects(client.getSnapshot("snap"), NotFoundError);

assert.equal((await client.listSandboxes()).length, 1);
await sandbox.remove();
await assert.rejects(client.getSandbox("node-test"), NotFoundError);
await assert.rejects(client.createSandbox("-"), ValidationError);
console.log("all is well");
