/** The description of a model file (src/agridistill/manifest.py); what the page needs of it is checked as there. */

import { FIGURES } from "./verdict";

const FORMAT_VERSION = 1;

export interface Preprocessing {
  readonly image_size: number;
  readonly resize: "crop" | "stretch";
}

export interface Manifest {
  readonly model: string;
  readonly classes: readonly string[];
  readonly preprocessing: Preprocessing;
  readonly weights_sha256: string;
  readonly temperature: number;
  readonly threshold: number;
  /** null if the training photos are unknown. */
  readonly familiarity: { mean: number[]; whitening: number[]; limit: number } | null;
}

/** The model or its description cannot be used. */
export class ModelError extends Error {}

type Table = Record<string, unknown>;

/** Checks a manifest and returns what the page needs of it; throws a ModelError that names the first wrong field. */
export function readManifest(document: unknown): Manifest {
  const table = object(document, "the manifest");
  if (table["format_version"] !== FORMAT_VERSION) {
    throw wrong(`a manifest with format_version ${FORMAT_VERSION}`, table["format_version"]);
  }
  const preprocessing = object(table["preprocessing"], "preprocessing");
  const resize = preprocessing["resize"] ?? "crop";
  if (resize !== "crop" && resize !== "stretch") throw wrong("preprocessing.resize: 'crop' or 'stretch'", resize);
  const size = number(preprocessing["image_size"], "preprocessing.image_size", 3, 4096);
  if (!Number.isInteger(size)) throw wrong("preprocessing.image_size: a whole number", size);
  return {
    model: text(table["model"], "model"),
    classes: classNames(table["classes"]),
    preprocessing: { image_size: size, resize },
    weights_sha256: text(table["weights_sha256"], "weights_sha256"),
    temperature: number(table["temperature"] ?? 1, "temperature", Number.MIN_VALUE, Number.MAX_VALUE),
    threshold: number(table["threshold"] ?? 0, "threshold", 0, 1),
    familiarity: familiarity(table["familiarity"]),
  };
}

function classNames(value: unknown): string[] {
  if (!Array.isArray(value) || !value.every((each) => typeof each === "string")) throw wrong("classes: a list of names", value);
  if (value.length < 2 || new Set(value).size !== value.length) {
    throw wrong("at least two classes with different names", value);
  }
  return value;
}

function familiarity(value: unknown): Manifest["familiarity"] {
  const table = object(value ?? {}, "familiarity");
  if (!Object.keys(table).length) return null;
  return {
    mean: numbers(table["mean"], "familiarity.mean", FIGURES),
    whitening: numbers(table["whitening"], "familiarity.whitening", (FIGURES * (FIGURES + 1)) / 2),
    limit: number(table["limit"], "familiarity.limit", Number.MIN_VALUE, Number.MAX_VALUE),
  };
}

function object(value: unknown, name: string): Table {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong(`${name}: an object`, value);
  return value as Table;
}

function text(value: unknown, name: string): string {
  if (typeof value !== "string") throw wrong(`${name}: text`, value);
  return value;
}

function number(value: unknown, name: string, low: number, high: number): number {
  if (typeof value !== "number" || !(value >= low && value <= high)) {
    throw wrong(`${name}: a number from ${low} to ${high}`, value);
  }
  return value;
}

function numbers(value: unknown, name: string, length: number): number[] {
  if (!Array.isArray(value) || value.length !== length || !value.every((each) => Number.isFinite(each))) {
    throw wrong(`${name}: ${length} numbers`, value);
  }
  return value as number[];
}

function wrong(expected: string, got: unknown): ModelError {
  return new ModelError(`expected ${expected}, got ${String(JSON.stringify(got)).slice(0, 60)}: export the model again`);
}
