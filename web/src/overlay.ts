/** Draws photos and attention maps on canvases; the colours are those of src/agridistill/colour.py. */

import type { Map2d } from "./engine";
import type { Pixels } from "./resample";

/** The colour map cividis (Nunez, Anderton and Renslow 2018) at 17 even steps; colour-blind readers see it equally. */
const COLOURS: readonly (readonly [number, number, number])[] = [
  [0, 34, 78], [0, 46, 106], [26, 56, 111], [50, 67, 109], [67, 78, 108], [83, 90, 109], [97, 101, 111],
  [111, 112, 115], [125, 124, 120], [140, 136, 120], [155, 148, 118], [171, 160, 114], [188, 174, 108],
  [205, 187, 99], [222, 201, 88], [240, 216, 70], [254, 232, 56],
]; // prettier-ignore
const THUMBNAIL_SIDE = 240;
const THUMBNAIL_QUALITY = 0.8;

/** Returns the colours, RGBA, of a map that is scaled to 0 to 1: blue for its least value, yellow for its largest. */
export function coloured({ data }: Map2d): Uint8ClampedArray<ArrayBuffer> {
  const [low, high] = [Math.min(...data), Math.max(...data)];
  const colours = new Uint8ClampedArray(4 * data.length);
  data.forEach((value, i) => {
    const place = high > low ? ((value - low) / (high - low)) * (COLOURS.length - 1) : 0;
    const [below, above] = [COLOURS[Math.floor(place)]!, COLOURS[Math.ceil(place)]!];
    for (let c = 0; c < 3; c++) colours[4 * i + c] = below[c]! + (place % 1) * (above[c]! - below[c]!);
    colours[4 * i + 3] = 255;
  });
  return colours;
}

export function drawPixels(canvas: HTMLCanvasElement, { width, height, data }: Pixels): void {
  const image = new ImageData(width, height);
  for (let i = 0, from = 0; i < image.data.length; i += 4, from += 3) {
    image.data[i] = data[from]!;
    image.data[i + 1] = data[from + 1]!;
    image.data[i + 2] = data[from + 2]!;
    image.data[i + 3] = 255;
  }
  put(canvas, image);
}

/** Draws a map in the size of the photo's part; the style sheet lays it over the photo, half transparent. */
export function drawMap(canvas: HTMLCanvasElement, map: Map2d, { width, height }: Pixels): void {
  const small = document.createElement("canvas");
  put(small, new ImageData(coloured(map), map.width, map.height));
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  if (!context) return;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
}

function put(canvas: HTMLCanvasElement, image: ImageData): void {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d")?.putImageData(image, 0, 0);
}

/** Returns a small JPEG of what a canvas shows, without metadata; null if the browser makes none. */
export async function thumbnailOf(canvas: HTMLCanvasElement): Promise<Blob | null> {
  const scale = Math.min(1, THUMBNAIL_SIDE / Math.max(canvas.width, canvas.height));
  const small = document.createElement("canvas");
  small.width = Math.max(1, Math.round(canvas.width * scale));
  small.height = Math.max(1, Math.round(canvas.height * scale));
  small.getContext("2d")?.drawImage(canvas, 0, 0, small.width, small.height);
  return new Promise((resolve) => small.toBlob(resolve, "image/jpeg", THUMBNAIL_QUALITY));
}
