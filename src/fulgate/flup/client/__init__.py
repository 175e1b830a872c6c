"""flup.client: WSGI applications that stand for an application elsewhere."""
