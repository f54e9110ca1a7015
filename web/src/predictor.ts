/** Predicts the label of a photo, with everything that shows how reliable it is. */

import { openEngine, type Engine, type Map2d } from "./engine";
import { ModelError, readManifest, type Manifest } from "./manifest";
import { enoughPixels, readPhoto, seenPart, softmax, toPixels } from "./preprocess";
import type { ReleaseFiles } from "./release";
import { cropped, type Pixels } from "./resample";
import { Familiarity, qualityProblem, verdictOf, type Prediction } from "./verdict";

export interface Seen {
  readonly prediction: Prediction;
  /** The part of the photo that the model saw, for the screen. */
  readonly view: Pixels;
  readonly attention: Map2d | null;
  readonly milliseconds: { readonly photo: number; readonly model: number };
}

export class Predictor {
  private readonly familiarity: Familiarity | null;

  constructor(
    readonly manifest: Manifest,
    readonly engine: Engine,
  ) {
    const found = manifest.familiarity;
    this.familiarity = found && new Familiarity(found.mean, found.whitening, found.limit);
  }

  static async open(files: ReleaseFiles): Promise<Predictor> {
    const manifest = readManifest(await files.json("model.json"));
    const predictor = new Predictor(manifest, await openEngine(files));
    // The first photo would take twice as long, because the browser translates code while it runs.
    const side = 2 * manifest.preprocessing.image_size;
    await predictor.judge({ width: side, height: side, data: new Uint8Array(3 * side * side) });
    return predictor;
  }

  /** Throws a PhotoError if the file is no photo that this browser reads. */
  async see(source: Blob | ImageBitmap): Promise<Seen> {
    const begin = performance.now();
    const photo = await readPhoto(source, enoughPixels(this.manifest.preprocessing));
    return this.judge(photo, performance.now() - begin);
  }

  private async judge(photo: Pixels, decodingMs = 0): Promise<Seen> {
    const { preprocessing } = this.manifest;
    const begin = performance.now();
    const pixels = toPixels(photo, preprocessing);
    const resized = performance.now();
    const { logits, attention } = await this.engine.run(pixels);
    const milliseconds = { photo: decodingMs + resized - begin, model: performance.now() - resized };
    const prediction = this.predictionOf(logits, pixels);
    const view = cropped(photo, seenPart(photo.width, photo.height, preprocessing));
    return { prediction, view, attention, milliseconds };
  }

  predictionOf(logits: Float32Array, pixels: Pixels): Prediction {
    const { classes, threshold } = this.manifest;
    if (logits.length !== classes.length || !logits.every(Number.isFinite)) {
      throw new ModelError(`expected ${classes.length} finite logits, got ${logits.length}: export the model again`);
    }
    const probabilities = softmax(logits, this.manifest);
    const best = probabilities.indexOf(Math.max(...probabilities));
    const probability = probabilities[best]!;
    const oodScore = this.familiarity?.oodScore(pixels) ?? null;
    const problem = qualityProblem(pixels);
    const verdict = verdictOf(problem, oodScore, probability, threshold);
    return { label: classes[best]!, probability, probabilities, oodScore, problem, verdict };
  }
}
