import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { historyName, takeOver } from "../src/scope";
import { readSettings, writeSettings } from "../src/settings";
import { Origin, Worker } from "./phone";

const HOST = "https://example.org/";
const [TOMATO, POTATO] = [`${HOST}tomato/`, `${HOST}potato/`];
const FILE = "files/0123456789abcdef-model.onnx.gz";
const SETTINGS = { language: "es", place: true, send: true, address: "https://farm.example/in" };

let origin: Origin;
beforeEach(() => {
  origin = new Origin();
});
afterEach(() => vi.unstubAllGlobals());

function visit(folder: string): void {
  vi.stubGlobal("document", { baseURI: `${folder}index.html?from=icon` });
}

async function installed(folder: string, release: string): Promise<Worker> {
  vi.stubGlobal("fetch", async (address: string) =>
    new Response(address === folder ? `<script id="release">{"release": "${release}"}</script>` : ""));
  const worker = new Worker(folder, release, [FILE]);
  await worker.send("install");
  await worker.send("activate");
  await worker.send("message", { data: { type: "hello", release } });
  return worker;
}

describe("offline copies", () => {
  test("of pages of one host stay, also of a page above and with the same release", async () => {
    for (const folder of [TOMATO, POTATO, HOST]) await installed(folder, "r1");
    expect([...origin.caches.keys()]).toHaveLength(3);
    await installed(TOMATO, "r2");
    await installed(HOST, "r2");
    const paths = [...origin.caches.values()].flatMap((each) => [...each.keys()]).sort();
    expect(paths).toEqual([HOST, POTATO, TOMATO].flatMap((folder) => [folder + FILE, `${folder}index.html`]).sort());
    expect([...origin.caches.keys()].filter((name) => name.endsWith("r1"))).toEqual(["agridistill /potato/ r1"]);
  });

  test("of earlier versions go only if they are the page's own, and after it has begun", async () => {
    origin.cached("release-own", `${TOMATO}index.html`, `${TOMATO}${FILE}?unpacked`);
    origin.cached("release-other", `${POTATO}index.html`);
    origin.cached("release-both", `${POTATO}${FILE}`, `${TOMATO}${FILE}`);
    origin.cached("release-of-something-else", `${HOST}shop.js`);
    const worker = new Worker(TOMATO, "r1");
    await worker.send("activate");
    expect(origin.caches.has("release-own")).toBe(true);
    await worker.send("message", { data: { type: "hello", release: "r1" } });
    expect([...origin.caches.keys()]).toEqual(["release-other", "release-both", "release-of-something-else"]);
  });
});

test("the worker answers for the page's files, and the network for others", async () => {
  const worker = await installed(TOMATO, "r1");
  for (const [path, status] of [["", 200], ["index.html?x#y", 200], ["release.json", 200], [FILE, 200], [`${FILE}x`, 404]] as const) {
    expect([path, (await worker.answer(TOMATO + path))?.status]).toEqual([path, status]);
  }
  for (const path of ["guide.html", "files/guide.pdf", "late/", `late/${FILE}`, "late/index.html", "sw.js"]) {
    expect([path, await worker.answer(TOMATO + path)]).toEqual([path, null]);
  }
});

describe("history and settings", () => {
  test("are those of one page", async () => {
    visit(TOMATO);
    expect(await takeOver(TOMATO)).toBe(false);
    writeSettings(SETTINGS);
    expect(readSettings()).toEqual(SETTINGS);
    visit(POTATO);
    expect(await takeOver(POTATO)).toBe(false);
    expect(readSettings()).toMatchObject({ send: false, address: "" });
    expect([TOMATO, POTATO, HOST].map(historyName)).toEqual(["agridistill /tomato/", "agridistill /potato/", "agridistill /"]);
  });

  test("of an earlier version stay with the page that had them", async () => {
    origin.databases.add("agridistill");
    origin.settings.set("agridistill", JSON.stringify(SETTINGS));
    origin.cached("release-1", `${TOMATO}index.html`);
    // A page that has come since then is opened first.
    visit(POTATO);
    expect(await takeOver(POTATO)).toBe(false);
    expect(readSettings().send).toBe(false);
    visit(TOMATO);
    expect([await takeOver(TOMATO), await takeOver(TOMATO)]).toEqual([true, false]);
    expect(readSettings()).toEqual(SETTINGS);
    expect([TOMATO, POTATO].map(historyName)).toEqual(["agridistill", "agridistill /potato/"]);
  });

  test("of an earlier version go to one page alone where nobody knows whose they are", async () => {
    origin.databases.add("agridistill");
    vi.stubGlobal("caches", undefined);
    expect([await takeOver(TOMATO), await takeOver(POTATO)]).toEqual([true, false]);
    expect([TOMATO, POTATO].map(historyName)).toEqual(["agridistill", "agridistill /potato/"]);
  });
});
