async def find(c, i, p):
    return None
