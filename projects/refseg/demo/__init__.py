"""The web page of `refseg demo`. Only `app` and `guard` need Gradio."""
