import { afterEach, expect, test, vi } from "vitest";
import { hasRelaxedSimd } from "../src/release";
import { Origin, Worker } from "./phone";

const FOLDER = "https://example.org/tomato/";
const [MODEL, PLAIN, RELAXED] = ["files/model.gz", "files/engine.js", "files/engine-relaxed.js"];

afterEach(() => {
  vi.unstubAllGlobals();
  vi.restoreAllMocks();
});

test.each([
  [true, RELAXED, PLAIN],
  [false, PLAIN, RELAXED],
])("a browser keeps the build of the engine that suits it: relaxed SIMD %s", async (relaxed, kept, other) => {
  const origin = new Origin();
  const asked: string[] = [];
  vi.spyOn(WebAssembly, "validate").mockReturnValue(relaxed);
  vi.stubGlobal("fetch", async (address: string) => {
    asked.push(address);
    return new Response(address === FOLDER ? '<script id="release">{"release": "1"}</script>' : "");
  });
  const worker = new Worker(FOLDER, "1", [MODEL, PLAIN, RELAXED], { [PLAIN]: "plain", [RELAXED]: "relaxed" });
  await worker.send("install");
  expect(asked).toEqual([MODEL, kept, ""].map((path) => FOLDER + path));
  expect([...origin.caches.values()].flatMap((each) => [...each.keys()])).not.toContain(FOLDER + other);
  // A page that wants the other one after all gets it from the server.
  expect((await worker.answer(FOLDER + other))!.status).toBe(200);
  expect(asked).toContain(FOLDER + other);
});

test("the module that asks for relaxed SIMD is sound but for its instruction", () => {
  const validate = vi.spyOn(WebAssembly, "validate");
  hasRelaxedSimd();
  const code = validate.mock.calls[0]![0] as Uint8Array;
  // 253 128 2 is i8x16.relaxed_swizzle; 253 14 is i8x16.swizzle, in a body that is a byte shorter.
  const plain = [...code].join().replace("253,128,2,11", "253,14,11").replace("10,15,1,13,", "10,14,1,12,");
  expect(WebAssembly.validate(Uint8Array.from(plain.split(",").map(Number)))).toBe(true);
});
