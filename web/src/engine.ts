/** Runs a model. The engine is a module of its own in `engines/`; a release has the one that its model needs. */

import { hasRelaxedSimd, type ReleaseFiles } from "./release";
import type { Pixels } from "./resample";

export interface Map2d {
  readonly width: number;
  readonly height: number;
  readonly data: Float32Array;
}

export interface Output {
  readonly logits: Float32Array;
  /** Where the model looked; null if the model does not tell. */
  readonly attention: Map2d | null;
}

export interface Engine {
  readonly name: string;
  readonly threads: number;
  run(pixels: Pixels): Promise<Output>;
}

/** What each module in `engines/` exports. */
export interface EngineModule {
  open(files: ReleaseFiles): Promise<Engine>;
}

const RELAXED = "engine-relaxed.js";

/** Opens the model of a release with the engine of the release, in the form that is fastest in this browser. */
export async function openEngine(files: ReleaseFiles): Promise<Engine> {
  if (files.has(RELAXED) && hasRelaxedSimd()) {
    try {
      return await opened(RELAXED, files);
    } catch (error) {
      // A browser that got relaxed SIMD since its last visit has the other form on the phone.
      console.warn(error);
    }
  }
  return opened("engine.js", files);
}

async function opened(name: string, files: ReleaseFiles): Promise<Engine> {
  const engine = (await import(files.url(name))) as EngineModule;
  return engine.open(files);
}
