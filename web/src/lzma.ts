/**
 * Unpacks .lzma files ("LZMA alone"), which are 40 % smaller than gzip's for WebAssembly; browsers have no decoder.
 *
 * After the format's public-domain specification by Igor Pavlov.
 */

const HEADER_BYTES = 13;
const PROB_BITS = 11;
const PROB_START = 1 << (PROB_BITS - 1);
const MOVE_BITS = 5;
const STATES = 12;
const POS_STATES = 16;
const MATCH_LEAST = 2;
const END_OF_ALIGNED = 14;
const FULL_DISTANCES = 128;
const MOST_BYTES = 256_000_000;

/** The bytes are no complete .lzma file. */
export class LzmaError extends Error {}

function probabilities(count: number): Uint16Array {
  return new Uint16Array(count).fill(PROB_START);
}

interface LengthModel {
  readonly choice: Uint16Array;
  readonly low: Uint16Array;
  readonly mid: Uint16Array;
  readonly high: Uint16Array;
}

function lengthModel(): LengthModel {
  return {
    choice: probabilities(2),
    low: probabilities(POS_STATES << 3),
    mid: probabilities(POS_STATES << 3),
    high: probabilities(256),
  };
}

/** Returns the unpacked content; throws an LzmaError if `packed` is damaged or cut off. */
export function unpackLzma(packed: Uint8Array): Uint8Array<ArrayBuffer> {
  if (packed.length < HEADER_BYTES + 5 || packed[0]! >= 9 * 5 * 5 || packed[HEADER_BYTES] !== 0) {
    throw new LzmaError("not an .lzma file");
  }
  let properties = packed[0]!;
  const literalContext = properties % 9;
  properties = Math.floor(properties / 9);
  const literalPosition = properties % 5;
  const positionMask = (1 << Math.floor(properties / 5)) - 1;
  const literalMask = (1 << literalPosition) - 1;
  const header = new DataView(packed.buffer, packed.byteOffset, HEADER_BYTES);
  const [low, high] = [header.getUint32(5, true), header.getUint32(9, true)];
  const known = !(low === 0xffffffff && high === 0xffffffff);
  const size = known ? high * 2 ** 32 + low : MOST_BYTES;
  if (size > MOST_BYTES) throw new LzmaError("an .lzma file that is too large");
  let out = new Uint8Array(known ? size : Math.min(MOST_BYTES, packed.length * 8));

  let at = HEADER_BYTES + 5;
  let range = 0xffffffff;
  let code = new DataView(packed.buffer, packed.byteOffset).getUint32(HEADER_BYTES + 1, false);

  function bit(models: Uint16Array, index: number): 0 | 1 {
    const model = models[index]!;
    const bound = (range >>> PROB_BITS) * model;
    let found: 0 | 1;
    if (code < bound) {
      range = bound;
      models[index] = model + (((1 << PROB_BITS) - model) >> MOVE_BITS);
      found = 0;
    } else {
      range -= bound;
      code -= bound;
      models[index] = model - (model >> MOVE_BITS);
      found = 1;
    }
    if (range < 0x1000000) {
      range = (range << 8) >>> 0;
      code = ((code << 8) | packed[at++]!) >>> 0;
    }
    return found;
  }

  function directBits(count: number): number {
    let value = 0;
    for (let i = 0; i < count; i++) {
      range >>>= 1;
      const found = code >= range ? 1 : 0;
      if (found) code -= range;
      value = value * 2 + found;
      if (range < 0x1000000) {
        range = (range << 8) >>> 0;
        code = ((code << 8) | packed[at++]!) >>> 0;
      }
    }
    return value;
  }

  function tree(models: Uint16Array, offset: number, bits: number): number {
    let symbol = 1;
    for (let i = 0; i < bits; i++) symbol = (symbol << 1) | bit(models, offset + symbol);
    return symbol - (1 << bits);
  }

  function reverseTree(models: Uint16Array, offset: number, bits: number): number {
    let symbol = 1;
    let value = 0;
    for (let i = 0; i < bits; i++) {
      const found = bit(models, offset + symbol);
      symbol = (symbol << 1) | found;
      value |= found << i;
    }
    return value;
  }

  function length({ choice, low, mid, high }: LengthModel, positionState: number): number {
    if (!bit(choice, 0)) return tree(low, positionState << 3, 3);
    if (!bit(choice, 1)) return 8 + tree(mid, positionState << 3, 3);
    return 16 + tree(high, 0, 8);
  }

  const literals = probabilities(0x300 << (literalContext + literalPosition));
  const isMatch = probabilities(STATES * POS_STATES);
  const isRep = probabilities(STATES);
  const isRepFirst = probabilities(STATES);
  const isRepSecond = probabilities(STATES);
  const isRepThird = probabilities(STATES);
  const isRepLong = probabilities(STATES * POS_STATES);
  const slots = probabilities(4 * 64);
  const places = probabilities(1 + FULL_DISTANCES - END_OF_ALIGNED);
  const aligned = probabilities(16);
  const matchLengths = lengthModel();
  const repLengths = lengthModel();
  let [rep0, rep1, rep2, rep3] = [0, 0, 0, 0];
  let state = 0;
  let written = 0;

  while (!known || written < size) {
    if (at > packed.length) throw new LzmaError("an .lzma file that is cut off");
    const positionState = written & positionMask;
    if (!bit(isMatch, (state << 4) + positionState)) {
      if (written >= out.length) out = grown(out, written + 1);
      const before = written ? out[written - 1]! : 0;
      const context = ((written & literalMask) << literalContext) + (before >> (8 - literalContext));
      const offset = 0x300 * context;
      let symbol = 1;
      if (state >= 7) {
        let matched = out[written - rep0 - 1]!;
        do {
          const matchBit = (matched >> 7) & 1;
          matched <<= 1;
          const found = bit(literals, offset + ((1 + matchBit) << 8) + symbol);
          symbol = (symbol << 1) | found;
          if (matchBit !== found) break;
        } while (symbol < 0x100);
      }
      while (symbol < 0x100) symbol = (symbol << 1) | bit(literals, offset + symbol);
      out[written++] = symbol;
      state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
      continue;
    }
    let count: number;
    if (bit(isRep, state)) {
      if (!bit(isRepFirst, state)) {
        if (!bit(isRepLong, (state << 4) + positionState)) {
          if (rep0 >= written) throw new LzmaError("a damaged .lzma file");
          if (written >= out.length) out = grown(out, written + 1);
          out[written] = out[written - rep0 - 1]!;
          written++;
          state = state < 7 ? 9 : 11;
          continue;
        }
      } else {
        let distance = rep1;
        if (bit(isRepSecond, state)) {
          distance = rep2;
          if (bit(isRepThird, state)) {
            distance = rep3;
            rep3 = rep2;
          }
          rep2 = rep1;
        }
        rep1 = rep0;
        rep0 = distance;
      }
      count = length(repLengths, positionState);
      state = state < 7 ? 8 : 11;
    } else {
      rep3 = rep2;
      rep2 = rep1;
      rep1 = rep0;
      count = length(matchLengths, positionState);
      state = state < 7 ? 7 : 10;
      const slot = tree(slots, Math.min(count, 3) << 6, 6);
      rep0 = slot;
      if (slot >= 4) {
        const bits = (slot >> 1) - 1;
        rep0 = (2 | (slot & 1)) * 2 ** bits;
        if (slot < END_OF_ALIGNED) rep0 += reverseTree(places, rep0 - slot, bits);
        else rep0 += directBits(bits - 4) * 16 + reverseTree(aligned, 0, 4);
      }
      if (rep0 === 0xffffffff) {
        if (known) throw new LzmaError("a damaged .lzma file");
        return out.slice(0, written);
      }
    }
    count += MATCH_LEAST;
    if (rep0 >= written || (known && written + count > size)) throw new LzmaError("a damaged .lzma file");
    if (written + count > out.length) out = grown(out, written + count);
    if (rep0 >= count) {
      out.copyWithin(written, written - rep0 - 1, written - rep0 - 1 + count);
      written += count;
    } else {
      for (const end = written + count; written < end; written++) out[written] = out[written - rep0 - 1]!;
    }
  }
  return out;
}

function grown(bytes: Uint8Array<ArrayBuffer>, least: number): Uint8Array<ArrayBuffer> {
  if (least > MOST_BYTES) throw new LzmaError("an .lzma file that is too large");
  const larger = new Uint8Array(Math.min(MOST_BYTES, Math.max(2 * bytes.length, least)));
  larger.set(bytes);
  return larger;
}
