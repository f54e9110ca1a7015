"""Where frames come from: folders, cameras, streams, addresses."""
