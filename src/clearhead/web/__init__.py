"""The page: GPT-2 in the browser, as plain JavaScript modules, and its export as one HTML file."""
