// Warp collectives: what the lanes of a warp do together.
//
// Each lane leaves a pointer to what it brings and waits. The last to arrive runs the operation for all of them,
// reading and writing the others' variables through those pointers, and makes them ready. Shuffles, votes, ldmatrix,
// mma, wgmma and barriers are all such operations, so divergence is found in one place: lanes that meet must be at the
// same one.
#include "machine.h"

namespace emu {

static bool meets(const Collective& c, u32 mask) { return (c.mask & mask) != 0; }

void collective(u32 mask, const Operation& operation, u64 key, void* brought) {
  Warp& warp = *self->warp;
  u32 bit = 1u << self->lane;
  mask &= warp.lanes;
  if (!(mask & bit)) fail("%s: its own lane %u is not in the mask %08x", operation.name, self->lane, mask);
  if (mask & warp.exited) fail("%s: lanes %08x of the mask have exited", operation.name, mask & warp.exited);

  size_t place = 0;
  while (place < warp.open.size() && !meets(warp.open[place], mask)) place++;
  if (place == warp.open.size()) warp.open.push_back({&operation, key, mask, 0, {}});
  Collective& c = warp.open[place];
  if (c.operation != &operation || c.key != key || c.mask != mask) {
    fail("divergence: this lane is at %s (mask %08x), lanes %08x of its warp are at %s (mask %08x)%s", operation.name,
         mask, c.arrived, c.operation->name, c.mask,
         c.operation == &operation && c.mask == mask ? ", with other operands" : "");
  }
  c.brought[self->lane] = brought;
  c.arrived |= bit;
  if (c.arrived != mask) {
    suspend({Wait::kCollective, operation.name});
    return;
  }

  Collective complete = c;
  warp.open.erase(warp.open.begin() + place);
  if (!operation.run(complete.brought, mask, warp)) {
    suspend(self->wait);  // what the others wait for was set by the operation
    return;
  }
  for (u32 lane = 0; lane < 32; lane++) {
    if ((mask >> lane & 1) && lane != self->lane) make_ready(*warp.threads[lane]);
  }
}

void aligned(const Operation& operation, u64 key, void* brought) {
  const Warp& warp = *self->warp;
  if (warp.exited) fail("%s: lanes %08x of the warp have exited", operation.name, warp.exited);
  collective(warp.lanes, operation, key, brought);
}

}  // namespace emu
