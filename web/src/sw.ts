import type { Release } from "./release";
const release = "__RELEASE__" as unknown as Release;
void release.release;
export {};
