/**
 * Decodes large JPEGs at a half, quarter or eighth of their size, as Pillow's draft mode does.
 *
 * Chromium's ImageDecoder scales inside the decoder, as Pillow's does, and gives the same pixels in a fifth of the time
 * of full decoding. At full size it hands out luma and chroma, of which a canvas makes other colours than Pillow. Other
 * browsers lack it, or ignore the wish.
 */

const [MARKER, STUFFED, START_OF_SCAN] = [0xff, 0x00, 0xda];
/** Markers of a frame's header: all from SOF0 to SOF15 but DHT, JPG and DAC. */
const isFrame = (marker: number): boolean => marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);

/** Returns width and height in pixels as stored, before the photo is turned upright; null if they are not found. */
export function jpegSize(file: Uint8Array): [number, number] | null {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  for (let at = 2; at + 9 <= file.length; ) {
    if (file[at] !== MARKER) return null;
    const marker = file[at + 1]!;
    if (marker === MARKER) at += 1;
    else if (isFrame(marker)) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    else if (marker === STUFFED || marker === START_OF_SCAN) return null;
    else at += 2 + view.getUint16(at + 2);
  }
  return null;
}

/** Returns 8, 4, 2 or 1: how much smaller a JPEG is decoded, so that its sides stay at least `shorterSide` long. */
export function jpegFactor(width: number, height: number, shorterSide: number): number {
  const spare = Math.min(Math.floor(width / shorterSide), Math.floor(height / shorterSide));
  return [8, 4, 2].find((each) => spare >= each) ?? 1;
}

/**
 * Decodes a JPEG at the size that `jpegFactor` gives; null if that is its own size, if it has more than `mostPixels`, or
 * if the browser cannot.
 */
export async function decodedSmaller(data: ArrayBuffer, shorterSide: number, mostPixels: number): Promise<VideoFrame | null> {
  if (typeof ImageDecoder === "undefined") return null;
  const [width, height] = jpegSize(new Uint8Array(data)) ?? [0, 0];
  const factor = jpegFactor(width, height, shorterSide);
  if (factor === 1 || width * height > mostPixels) return null;
  const [desiredWidth, desiredHeight] = [Math.ceil(width / factor), Math.ceil(height / factor)];
  const decoder = new ImageDecoder({ data, type: "image/jpeg", desiredWidth, desiredHeight });
  try {
    const { image } = await decoder.decode();
    // The frame may be turned.
    if (image.displayWidth * image.displayHeight === desiredWidth * desiredHeight) return image;
    image.close();
  } catch {
    // The caller decodes it in full, and reports the file if that fails as well.
  } finally {
    decoder.close();
  }
  return null;
}
