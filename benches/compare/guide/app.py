"""The guide's app: FastAPI, SQLAlchemy's asyncio and asyncpg, with the endpoints of the comparison."""

import asyncio
import os
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ROWS = 10_000

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=10, max_overflow=0, echo=False)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    hits: Mapped[int]


class ItemOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    name: str
    hits: int


async def get_db():
    async with SessionLocal() as session:
        yield session


Db = Annotated[AsyncSession, Depends(get_db)]
app = FastAPI()


async def find(db: AsyncSession, item_id: int) -> Item:
    item = await db.get(Item, item_id)
    if item is None:
        raise HTTPException(status_code=404, detail="no such item")
    return item


@app.get("/none/{item_id}")
async def none(item_id: int) -> ItemOut:
    return ItemOut(id=item_id, name=f"item {item_id}", hits=0)


@app.get("/one/{item_id}", response_model=ItemOut)
async def one(item_id: int, db: Db):
    return await find(db, item_id)


@app.get("/five/{item_id}", response_model=list[ItemOut])
async def five(item_id: int, db: Db):
    return [await find(db, (item_id - 1 + step) % ROWS + 1) for step in range(5)]


@app.post("/touch/{item_id}", response_model=ItemOut)
async def touch(item_id: int, db: Db):
    item = await find(db, item_id)
    item.hits += 1
    await db.commit()
    return item


@app.get("/slow/{item_id}", response_model=ItemOut)
async def slow(item_id: int, db: Db):
    await find(db, item_id)
    await asyncio.sleep(0.05)
    # From the database again, not from the session's identity map.
    return await db.get(Item, item_id, populate_existing=True)
