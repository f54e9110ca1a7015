/** Runs a model. The engine is a module of its own in `engines/`; a release has the one that its model needs. */

import type { ReleaseFiles } from "./release";
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

/** Opens the model of a release with the engine of the release. */
export async function openEngine(files: ReleaseFiles): Promise<Engine> {
  const engine = (await import(files.url("engine.js"))) as EngineModule;
  return engine.open(files);
}
