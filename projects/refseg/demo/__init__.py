"""The web page of `refseg demo`. Only `app` needs Gradio; what the page does and refuses is in the other modules."""
