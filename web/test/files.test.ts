import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { photoName, toCsv, toJson } from "../src/exporting";
import type { Answer } from "../src/history";
import { LzmaError, unpackLzma } from "../src/lzma";
import { checkedAddress } from "../src/sending";
import { crc32, zip } from "../src/zip";

const folder = mkdtempSync(join(tmpdir(), "page-"));
afterAll(() => rmSync(folder, { recursive: true }));

function python(script: string): string {
  return execFileSync("python3", ["-c", script], { cwd: folder, encoding: "utf8" });
}

const answer: Answer = {
  id: "ab12",
  at: "2026-03-01T10:20:30.000Z",
  verdict: "answer",
  problem: "",
  label: '=HYPERLINK("x"),y',
  probability: 0.93456,
  probabilities: { a: 0.93456, b: 0.06544 },
  oodScore: null,
  plant: "ab12",
  place: { latitude: -1.5, longitude: 30.25, accuracyM: 12 },
  model: "0123456789ab",
  photo: "leaf.jpg",
};

describe("lzma", () => {
  const golden = readFileSync(new URL("golden.json", import.meta.url));
  const content = Buffer.concat([Buffer.from("leaf ".repeat(4000)), golden.subarray(0, 12_000)]);
  const pack = (filter: string): Uint8Array => {
    writeFileSync(join(folder, "content"), content);
    python(
      `import lzma; data = open("content", "rb").read(); f = dict(id=lzma.FILTER_LZMA1, preset=6, ${filter}); ` +
        `open("packed", "wb").write(lzma.compress(data, format=lzma.FORMAT_ALONE, filters=[f]))`,
    );
    return new Uint8Array(readFileSync(join(folder, "packed")));
  };

  test.each(["lc=3, lp=0, pb=0", "lc=0, lp=2, pb=2", "lc=4, lp=0, pb=4", "dict_size=4096"])("unpacks what Python packs: %s", (filter) => {
    expect(Buffer.compare(unpackLzma(pack(filter)), content)).toBe(0);
  });

  test("refuses what is cut off, or something else, and never hangs on damage", () => {
    const packed = pack("lc=3");
    expect(() => unpackLzma(packed.subarray(0, packed.length / 2))).toThrow(LzmaError);
    expect(() => unpackLzma(new Uint8Array(100).fill(0xff))).toThrow(LzmaError);
    expect(() => unpackLzma(new Uint8Array())).toThrow(LzmaError);
    for (let at = 20; at < packed.length; at += 97) {
      const damaged = packed.slice();
      damaged[at]! ^= 0x55;
      let found: Uint8Array | null = null;
      try {
        found = unpackLzma(damaged);
      } catch (error) {
        expect(error).toBeInstanceOf(LzmaError);
      }
      expect(found && Buffer.compare(found, content) === 0).toBeFalsy();
    }
  });
});

describe("exports", () => {
  test("a ZIP file is read by others", async () => {
    expect(crc32(Buffer.from("123456789"))).toBe(0xcbf43926);
    const at = new Date(2026, 2, 1, 10, 20, 30);
    const entries = [
      { name: "photos/ورقة.jpg", content: new Blob(["leaf"]), at },
      { name: "empty", content: new Blob([]), at },
    ];
    writeFileSync(join(folder, "x.zip"), Buffer.from(await (await zip(entries)).arrayBuffer()));
    const read = python(
      `import zipfile, json; z = zipfile.ZipFile("x.zip"); assert z.testzip() is None; ` +
        `print(json.dumps([[i.filename, z.read(i).decode(), i.date_time] for i in z.infolist()]))`,
    );
    expect(JSON.parse(read)).toEqual([
      ["photos/ورقة.jpg", "leaf", [2026, 3, 1, 10, 20, 30]],
      ["empty", "", [2026, 3, 1, 10, 20, 30]],
    ]);
  });

  test("a table quotes, and runs no formula", () => {
    const [header, row] = toCsv([answer]).split("\r\n");
    expect(header).toBe("\ufeffid,at,plant,verdict,label,probability,ood_score,problem,latitude,longitude,accuracy_m,model,photo");
    expect(row).toBe(`ab12,${answer.at},ab12,answer,"'=HYPERLINK(""x""),y",0.9346,,,-1.5,30.25,12,0123456789ab,leaf.jpg`);
  });

  test("JSON names its form, and rounds as a device does", () => {
    const { format, answers } = JSON.parse(toJson([answer]));
    expect([format, answers[0].probability, answers[0].place.accuracy_m]).toEqual([1, 0.9346, 12]);
  });

  test("photos are named by their time", () => {
    expect(photoName(answer.at, "ab12cd", "image/jpeg")).toBe("2026-03-01T10-20-30-ab12.jpg");
    expect(photoName(answer.at, "ab12cd", "")).toBe("2026-03-01T10-20-30-ab12.img");
  });
});

test("nothing is sent to what is no address, or holds a password", () => {
  expect(checkedAddress(" https://farm.example/in ")).toBe("https://farm.example/in");
  expect(checkedAddress("http://192.168.1.2:8000/")).toBe("http://192.168.1.2:8000/");
  for (const text of ["", "farm", "javascript:alert(1)", "file:///x", "https://me:secret@farm.example/"]) {
    expect(checkedAddress(text)).toBeNull();
  }
});
