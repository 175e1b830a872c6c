"""A FastAPI site: a form with a file, validation, dependencies, and work after the answer."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Query
from pydantic import BaseModel

FOLDER = Path(os.environ.get("FULGATE_TEST_FOLDER", "."))

app = FastAPI()


class Item(BaseModel):
    name: str
    price: float


@app.post("/items")
async def create(item: Item, tasks: BackgroundTasks) -> dict[str, Any]:
    tasks.add_task((FOLDER / item.name).touch)
    digest = hashlib.sha256(item.name.encode()).hexdigest()
    return {"name": item.name, "double": item.price * 2, "sha256": digest}


@app.get("/hello/{name}")
def hello(name: str, times: int = Query(1, ge=1)) -> dict[str, Any]:
    """Not a coroutine: FastAPI runs it in a thread."""
    return {"hello": [name] * times}
