/**
 * Converts a photo to the input of a model, as src/agridistill/preprocess.py does.
 *
 * The browser decodes: it turns the photo upright (EXIF) and converts its colours to sRGB. All that follows is ours and
 * gives the same integers as Pillow.
 */

import { decodedSmaller, jpegFactor } from "./jpeg";
import type { Manifest, Preprocessing } from "./manifest";
import { reduced, resample, stripRows, whole, type Box, type Pixels, type Rows } from "./resample";

/** A JPEG is decoded at no less than twice the size of the input. */
const SPARE = 2;
/** Other photos with more pixels are scaled down at once. */
const WHOLE_PIXELS = 4_000_000;
const MAX_PIXELS = 178_956_970;
/** Larger files are no usual photos; of these only the head is read. */
const READ_BYTES = 64_000_000;
const HEAD_BYTES = 64;
const HEIC_BRANDS = ["heic", "heix", "hevc", "hevx", "mif1", "heif"];

export type PhotoProblem = "heic" | "unreadable" | "too large" | "empty";

/** A file cannot be read as a photo. */
export class PhotoError extends Error {
  constructor(readonly problem: PhotoProblem) {
    super(problem);
  }
}

export type FileKind = "jpeg" | "heic" | "other";

export function kindOf(head: Uint8Array): FileKind {
  if (head[0] === 0xff && head[1] === 0xd8) return "jpeg";
  const text = String.fromCharCode(...head);
  return text.slice(4, 8) === "ftyp" && HEIC_BRANDS.some((brand) => text.includes(brand)) ? "heic" : "other";
}

/** Returns the shorter side in pixels that keeps the result of `toPixels` sharp. */
export function enoughPixels(preprocessing: Preprocessing): number {
  return SPARE * preprocessing.image_size;
}

/** Decodes a photo to upright sRGB pixels, with a shorter side of at least `shorterSide` unless the photo is smaller. */
export async function readPhoto(source: Blob | ImageBitmap, shorterSide: number): Promise<Pixels> {
  if (!(source instanceof Blob)) return scaledAndClosed(source, "other", shorterSide);
  if (!source.size) throw new PhotoError("empty");
  const isWhole = source.size <= READ_BYTES;
  const data = await (isWhole ? source : source.slice(0, HEAD_BYTES)).arrayBuffer();
  const kind = kindOf(new Uint8Array(data, 0, Math.min(HEAD_BYTES, data.byteLength)));
  const smaller = kind === "jpeg" && isWhole ? await decodedSmaller(data, shorterSide, MAX_PIXELS) : null;
  if (smaller) return scaledAndClosed(smaller, "other", shorterSide);
  let decoded: ImageBitmap;
  try {
    decoded = await createImageBitmap(source, { imageOrientation: "from-image" });
  } catch {
    throw new PhotoError(kind === "heic" ? "heic" : "unreadable");
  }
  return scaledAndClosed(decoded, kind, shorterSide);
}

function scaledAndClosed(decoded: ImageBitmap | VideoFrame, kind: FileKind, shorterSide: number): Pixels {
  try {
    const rows = rowsOf(decoded);
    if (rows.width * rows.height > MAX_PIXELS) throw new PhotoError("too large");
    return scaledDown(rows, kind, shorterSide);
  } finally {
    decoded.close();
  }
}

/** Scales a decoded photo as Pillow does while it decodes: by a half, quarter or eighth for a JPEG, else by a mean. */
export function scaledDown(rows: Rows, kind: FileKind, shorterSide: number): Pixels {
  const factor = kind === "jpeg" ? jpegFactor(rows.width, rows.height, shorterSide) : 1;
  const [width, height] = [Math.ceil(rows.width / factor), Math.ceil(rows.height / factor)];
  const scale = width * height > WHOLE_PIXELS ? (2 * shorterSide) / Math.min(width, height) : 1;
  const plain = factor > 1 ? reduced(rows, factor) : scale < 1 ? rows : whole(rows);
  return scale < 1 ? resample(plain, halfEven(width * scale), halfEven(height * scale), "box") : (plain as Pixels);
}

/** Python's round. */
function halfEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 ? below + 1 : below;
}

/** The part of a photo that the model sees: its central square, or all of it. */
export function seenPart(width: number, height: number, { resize }: Preprocessing): Box {
  if (resize === "stretch") return [0, 0, width, height];
  const side = Math.min(width, height);
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  return [left, top, left + side, top + side];
}

/** Resizes a photo to the input size of a model. */
export function toPixels(photo: Pixels, preprocessing: Preprocessing): Pixels {
  const size = preprocessing.image_size;
  return resample(photo, size, size, "bicubic", seenPart(photo.width, photo.height, preprocessing));
}

/** Computes class probabilities from logits. */
export function softmax(logits: ArrayLike<number>, { temperature }: Pick<Manifest, "temperature">): number[] {
  const scaled = Array.from(logits, (each) => each / temperature);
  const most = Math.max(...scaled);
  const exponentials = scaled.map((each) => Math.exp(each - most));
  const sum = exponentials.reduce((total, each) => total + each, 0);
  return exponentials.map((each) => each / sum);
}

/** Reads strips, because some phones refuse a canvas of the size of their own photos. */
function rowsOf(source: ImageBitmap | VideoFrame): Rows {
  const [width, height] = "width" in source ? [source.width, source.height] : [source.displayWidth, source.displayHeight];
  const context = strip(width, Math.min(stripRows(width), height));
  context.imageSmoothingEnabled = false;
  return {
    width,
    height,
    read(top, count) {
      // Transparent pixels become white.
      context.fillStyle = "#fff";
      context.fillRect(0, 0, width, count);
      context.drawImage(source, 0, top, width, count, 0, 0, width, count);
      return context.getImageData(0, 0, width, count).data;
    },
  };
}

type Context = CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D;

let lastStrip: Context | undefined;

function strip(width: number, height: number): Context {
  // A new canvas takes a third of the time of a small photo.
  if (lastStrip?.canvas.width === width && lastStrip.canvas.height === height) return lastStrip;
  const canvas =
    typeof document === "undefined"
      ? new OffscreenCanvas(width, height)
      : Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false }) as Context | null;
  if (!context) throw new PhotoError("too large");
  lastStrip = context;
  return context;
}
