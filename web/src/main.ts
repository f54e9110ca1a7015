import { Predictor } from "./predictor";
import { ReleaseFiles } from "./release";
const release = JSON.parse(document.getElementById("release")!.textContent!);
const files = new ReleaseFiles(release, document.baseURI);
const ready = Predictor.open(files);
Object.assign(window, { agridistill: { ready, see: async (b: Blob) => (await ready).see(b) } });
