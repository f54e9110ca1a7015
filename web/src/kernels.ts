/** The loops of kernels/pixels.ts, which compute in a memory of their own. */

import base64 from "../build/kernels.js";

type Address = number;

interface Kernels {
  readonly memory: WebAssembly.Memory;
  expand(from: Address, count: number, to: Address): void;
  pack(from: Address, count: number, to: Address): void;
  resampleRows(
    from: Address,
    rows: number,
    inWidth: number,
    starts: Address,
    counts: Address,
    weights: Address,
    size: number,
    width: number,
    to: Address,
  ): void;
  resampleColumns(
    from: Address,
    width: number,
    starts: Address,
    counts: Address,
    weights: Address,
    size: number,
    height: number,
    to: Address,
  ): void;
  countColours(from: Address, width: number, height: number, light: Address, darkest: number, counts: Address): void;
  sharpness(light: Address, width: number, height: number): number;
  repeatedRows(from: Address, width: number, height: number): number;
}

const SPARE_BYTES = 16;
const PAGE_BYTES = 65_536;
/** The memory of an instance never shrinks, so a larger one is dropped before the next photo. */
const MOST_BYTES = 32_000_000;

let code: WebAssembly.Module | undefined;
let instance: Kernels | undefined;

/** Compiled at the first call: a browser without SIMD gets as far as telling so. */
export function kernels(): Kernels {
  code ??= new WebAssembly.Module(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)));
  instance ??= new WebAssembly.Instance(code).exports as unknown as Kernels;
  return instance;
}

/** Returns addresses of this many bytes each. All earlier addresses become invalid. */
export function room<T extends readonly number[]>(...bytes: T): { [K in keyof T]: Address } {
  let end = 0;
  const addresses = bytes.map((size) => {
    const begin = end;
    end += 16 * Math.ceil((size + SPARE_BYTES) / 16);
    return begin;
  });
  if (end < MOST_BYTES && memoryBytes() > MOST_BYTES) instance = undefined;
  const missing = end - memoryBytes();
  if (missing > 0) kernels().memory.grow(Math.ceil(missing / PAGE_BYTES));
  return addresses as { [K in keyof T]: Address };
}

function memoryBytes(): number {
  return kernels().memory.buffer.byteLength;
}

/** Copies an array into the memory. */
export function put(values: Uint8Array | Uint8ClampedArray | Int32Array, to: Address): void {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  new Uint8Array(kernels().memory.buffer).set(bytes, to);
}

/** Copies bytes out of the memory. */
export function taken(from: Address, count: number): Uint8Array {
  return new Uint8Array(kernels().memory.buffer).slice(from, from + count);
}

/** Copies integers out of the memory. */
export function takenIntegers(from: Address, count: number): Int32Array {
  return new Int32Array(kernels().memory.buffer).slice(from / 4, from / 4 + count);
}
