/** Writes ZIP files without compression, which photos do not need. */

export interface ZipEntry {
  /** With "/" between folders. */
  readonly name: string;
  readonly content: Blob;
  readonly at: Date;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});
const UTF8_NAMES = 0x0800;
const VERSION = 20;
const MOST_BYTES = 0xffffffff;
const MOST_ENTRIES = 0xffff;

export function crc32(bytes: Uint8Array): number {
  let value = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) value = TABLE[(value ^ bytes[i]!) & 0xff]! ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** Returns a ZIP file. One entry at a time is in memory; throws a RangeError beyond 4 GB or 65,535 entries. */
export async function zip(entries: AsyncIterable<ZipEntry> | Iterable<ZipEntry>): Promise<Blob> {
  const parts: BlobPart[] = [];
  const directory: Uint8Array<ArrayBuffer>[] = [];
  let offset = 0;
  for await (const { name, content, at } of entries) {
    const encoded = new TextEncoder().encode(name);
    const checksum = crc32(new Uint8Array(await content.arrayBuffer()));
    const fields = [UTF8_NAMES, 0, dosTime(at), dosDate(at)];
    const sizes = [checksum, content.size, content.size];
    const header = record(0x04034b50, [VERSION, ...fields], sizes, [encoded.length, 0]);
    directory.push(
      record(0x02014b50, [VERSION, VERSION, ...fields], sizes, [encoded.length, 0, 0, 0, 0], [0, offset]),
      encoded,
    );
    parts.push(header, encoded, content);
    offset += header.length + encoded.length + content.size;
    if (offset > MOST_BYTES || directory.length / 2 > MOST_ENTRIES) throw new RangeError("too much for one ZIP file");
  }
  const count = directory.length / 2;
  const length = directory.reduce((sum, each) => sum + each.length, 0);
  const end = record(0x06054b50, [0, 0, count, count], [length, offset], [0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** A signature, 16-bit numbers, 32-bit numbers, 16-bit numbers and again 32-bit ones, all little-endian. */
function record(signature: number, ...groups: readonly number[][]): Uint8Array<ArrayBuffer> {
  const wide = groups.map((group, i) => ({ group, bytes: i % 2 ? 4 : 2 }));
  const view = new DataView(new ArrayBuffer(4 + wide.reduce((sum, { group, bytes }) => sum + bytes * group.length, 0)));
  view.setUint32(0, signature, true);
  let at = 4;
  for (const { group, bytes } of wide) {
    for (const value of group) {
      if (bytes === 4) view.setUint32(at, value, true);
      else view.setUint16(at, value, true);
      at += bytes;
    }
  }
  return new Uint8Array(view.buffer);
}

function dosTime(at: Date): number {
  return (at.getHours() << 11) | (at.getMinutes() << 5) | (at.getSeconds() >> 1);
}

function dosDate(at: Date): number {
  return (Math.max(0, at.getFullYear() - 1980) << 9) | ((at.getMonth() + 1) << 5) | at.getDate();
}
