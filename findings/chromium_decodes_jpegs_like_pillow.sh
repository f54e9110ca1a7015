#!/usr/bin/env bash
# Chromium 156: `new ImageDecoder({desiredWidth, desiredHeight})` scales a JPEG inside the decoder, by n/8, and the pixels equal
# those of Pillow's draft mode to the last bit. With createImageBitmap's resizeWidth they differ by some levels, and the photo is
# decoded in full first. The specification only says that the wish has no effect if a codec cannot scale.
# Output seen: "ImageDecoder: 1000 x 750, equal; createImageBitmap: at most 3 levels apart"
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" "${browser:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet pillow==13.0.0 numpy==2.3.5
venv/bin/python - <<'PYTHON'
import numpy as np
from PIL import Image
cells = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
Image.fromarray(cells).resize((4000, 3000), Image.Resampling.BICUBIC).save("photo.jpg", quality=92)
PYTHON
cat > index.html <<'HTML'
<!doctype html><pre></pre><script type="module">
const data = await (await fetch("photo.jpg")).arrayBuffer();
const pixels = (image, width, height) => {
  const context = new OffscreenCanvas(width, height).getContext("2d", { alpha: false });
  context.drawImage(image, 0, 0);
  return Array.from(context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 < 3));
};
const decoder = new ImageDecoder({ data: data.slice(), type: "image/jpeg", desiredWidth: 1000, desiredHeight: 750 });
const { image } = await decoder.decode();
const size = { resizeWidth: 1000, resizeHeight: 750, resizeQuality: "medium" };
const bitmap = await createImageBitmap(new Blob([data]), size);
const [width, height] = [image.displayWidth, image.displayHeight];
const found = { width, height, decoder: pixels(image, width, height), bitmap: pixels(bitmap, 1000, 750) };
await fetch("result", { method: "POST", body: JSON.stringify(found) });
</script>
HTML
venv/bin/python - <<'PYTHON' &
import http.server
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        open("result.part", "wb").write(self.rfile.read(int(self.headers["Content-Length"])))
        __import__("os").rename("result.part", "result.json")
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8597), Handler).serve_forever()
PYTHON
server=$!
sleep 1
chromium --headless --no-sandbox --disable-gpu --user-data-dir="$folder/profile" http://localhost:8597/ > /dev/null 2>&1 &
browser=$!
for _ in $(seq 60); do [ -e result.json ] || sleep 1; done
kill "$browser" && wait "$browser" 2>/dev/null || true
venv/bin/python - <<'PYTHON'
import json
import numpy as np
from PIL import Image
found = json.load(open("result.json"))
photo = Image.open("photo.jpg")
photo.draft(None, (1000, 750))
expected = np.asarray(photo.convert("RGB")).astype(int)
gap = {name: int(np.abs(np.reshape(found[name], expected.shape) - expected).max()) for name in ("decoder", "bitmap")}
print(f"ImageDecoder: {found['width']} x {found['height']}, {'differ' if gap['decoder'] else 'equal'}; "
      f"createImageBitmap: at most {gap['bitmap']} levels apart")
assert not gap["decoder"] and gap["bitmap"], gap
PYTHON
