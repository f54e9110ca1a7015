import { inflateSync } from "node:zlib";
import type { Pixels, Rows } from "../src/resample";
import golden from "./golden.json";

export { golden };

export function unpacked({ width, height, data }: { width: number; height: number; data: string }): Pixels {
  return { width, height, data: new Uint8Array(inflateSync(Buffer.from(data, "base64"))) };
}

/** The rows of a photo as a browser gives them. */
export function rowsOf({ width, height, data }: Pixels): Rows {
  return {
    width,
    height,
    read(top, count) {
      const rgba = new Uint8ClampedArray(4 * width * count).fill(255);
      for (let to = 0, from = 3 * top * width; to < rgba.length; to += 4, from += 3) {
        rgba[to] = data[from]!;
        rgba[to + 1] = data[from + 1]!;
        rgba[to + 2] = data[from + 2]!;
      }
      return rgba;
    },
  };
}
