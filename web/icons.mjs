// Draws the page's icons, a leaf on green, as PNG files.
import { crc32, deflateSync } from "node:zlib";

const GROUND = [22, 101, 52];
const LEAF = [236, 253, 245];
const SAMPLES = 4;

/** Whether a point of the unit square, y down, lies on the leaf: two arcs from the stalk to the tip, without its vein. */
function onLeaf(x, y) {
  // Along the leaf's axis from the lower left to the upper right, and across it.
  const along = (x - y) / Math.SQRT2;
  const across = (x + y - 1) / Math.SQRT2;
  const half = 0.42;
  if (Math.abs(along) > half) return along < 0 && along > -half - 0.12 && Math.abs(across) < 0.02;
  const width = 0.27 * Math.cos((along / half) * (Math.PI / 2));
  const vein = 0.018 * (1 - (along / half) * 0.7);
  return Math.abs(across) < width && (Math.abs(across) > vein || along > half * 0.72);
}

function drawn(side, scale, rounded) {
  const row = 1 + 4 * side;
  const raw = Buffer.alloc(row * side);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      let leaf = 0;
      let ground = 0;
      for (let sub = 0; sub < SAMPLES * SAMPLES; sub++) {
        const u = (x + ((sub % SAMPLES) + 0.5) / SAMPLES) / side;
        const v = (y + (Math.floor(sub / SAMPLES) + 0.5) / SAMPLES) / side;
        leaf += onLeaf((u - 0.5) / scale + 0.5, (v - 0.5) / scale + 0.5);
        const [dx, dy] = [u, v].map((each) => Math.max(0, Math.abs(each - 0.5) - 0.5 + 0.2));
        ground += !rounded || Math.hypot(dx, dy) <= 0.2;
      }
      const share = ground ? Math.min(1, leaf / ground) : 0;
      const at = row * y + 1 + 4 * x;
      for (let c = 0; c < 3; c++) raw[at + c] = Math.round(GROUND[c] + share * (LEAF[c] - GROUND[c]));
      raw[at + 3] = Math.round((255 * ground) / (SAMPLES * SAMPLES));
    }
  }
  return png(side, raw);
}

function png(side, raw) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(side, 0);
  header.writeUInt32BE(side, 4);
  header.set([8, 6, 0, 0, 0], 8);
  const parts = [["IHDR", header], ["IDAT", deflateSync(raw, { level: 9 })], ["IEND", Buffer.alloc(0)]];
  const chunks = parts.map(([name, content]) => {
    const chunk = Buffer.alloc(12 + content.length);
    chunk.writeUInt32BE(content.length, 0);
    chunk.write(name, 4, "latin1");
    content.copy(chunk, 8);
    chunk.writeUInt32BE(crc32(chunk.subarray(4, 8 + content.length)) >>> 0, 8 + content.length);
    return chunk;
  });
  return Buffer.concat([Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]), ...chunks]);
}

export function icons() {
  return {
    "icon-192.png": drawn(192, 0.86, true),
    "icon-512.png": drawn(512, 0.86, true),
    // Systems cut a maskable icon to a circle of 80 % of its side.
    "icon-maskable-512.png": drawn(512, 0.62, false),
  };
}
