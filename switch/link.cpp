#include "switch/link.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "base/check.hpp"

namespace millrace::vswitch {

namespace {

// Writes one after another into the payload room of a parcel's chunks.
class Writer {
 public:
  explicit Writer(Parcel& parcel) noexcept
      : parcel_{parcel}, at_{parcel.chunks[0] + sizeof(Parcel)}, room_{parcel_inline} {}

  void add(const View& view) noexcept {
    for (std::size_t done = 0; done < view.size;) {
      if (room_ == 0) next_chunk();
      const std::size_t size = std::min<std::size_t>(room_, view.size - done);
      std::memcpy(at_, view.data + done, size);
      at_ += size;
      room_ -= size;
      done += size;
    }
  }
  void finish() noexcept { close_view(); }

 private:
  void next_chunk() noexcept {
    close_view();
    CHECK(++chunk_ < parcel_.chunk_count);
    at_ = parcel_.chunks[chunk_];
    room_ = chunk_size;
  }
  void close_view() noexcept {
    std::byte* begin = parcel_.chunks[chunk_] + (chunk_ == 0 ? sizeof(Parcel) : 0);
    if (at_ == begin) return;
    parcel_.packet.views[parcel_.packet.view_count++] = {begin,
                                                         static_cast<std::uint32_t>(at_ - begin)};
  }

  Parcel& parcel_;
  std::byte* at_;
  std::size_t room_;
  std::size_t chunk_ = 0;
};

}  // namespace

void ParcelPool::Unmap::operator()(std::byte* memory) const noexcept {
  ::munmap(memory, chunk_count * chunk_size);
}

ParcelPool::ParcelPool() : stack_{std::make_unique<std::byte*[]>(chunk_count)} {
  void* memory = ::mmap(nullptr, chunk_count * chunk_size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc{};
  memory_.reset(static_cast<std::byte*>(memory));
  for (std::size_t i = 0; i < chunk_count; ++i) {
    stack_[i] = memory_.get() + (chunk_count - 1 - i) * chunk_size;
  }
}

Parcel* ParcelPool::pack(const Packet& packet, std::size_t chunks_allowed) noexcept {
  std::size_t payload = 0;
  for (const View& view : packet.payload()) payload += view.size;
  const std::size_t beyond = payload > parcel_inline ? payload - parcel_inline : 0;
  const std::size_t chunks = 1 + (beyond + chunk_size - 1) / chunk_size;
  if (chunks > free_ || chunks > chunks_allowed || chunks > Parcel::chunks_max) return nullptr;

  std::byte* first = stack_[--free_];
  auto* parcel = ::new (first) Parcel;  // no value initialisation: views stay as they are
  parcel->chunks[0] = first;
  parcel->chunk_count = static_cast<std::uint16_t>(chunks);
  for (std::size_t i = 1; i < chunks; ++i) parcel->chunks[i] = stack_[--free_];

  copy_all_but_views(packet, parcel->packet);
  Writer writer{*parcel};
  for (const View& view : packet.payload()) writer.add(view);
  writer.finish();
  return parcel;
}

void ParcelPool::free(Parcel& parcel) noexcept {
  const std::size_t chunks = parcel.chunk_count;
  CHECK(free_ + chunks <= chunk_count);
  for (std::size_t i = chunks; i-- > 0;) stack_[free_++] = parcel.chunks[i];
}

bool Link::send(ParcelPool& pool, const Packet& packet, PortId port, std::uint16_t slot) noexcept {
  if (sent_ - came_back_ >= parcels_max) return false;
  Parcel* parcel = pool.pack(packet, chunks_max - chunks_out_);
  if (parcel == nullptr) return false;
  parcel->port = port;
  parcel->slot = slot;
  ++sent_;
  chunks_out_ += parcel->chunk_count;
  // What is out never exceeds the queue's size, so neither way can be full.
  CHECK(parcels_.push(parcel));
  return true;
}

void Link::give_back(Parcel* parcel) noexcept {
  CHECK(back_.push(parcel));
}

void Link::reclaim(ParcelPool& pool) noexcept {
  Parcel* parcel = nullptr;
  for (std::size_t i = 0; i < parcels_max && back_.pop(parcel); ++i) {
    ++came_back_;
    chunks_out_ -= parcel->chunk_count;
    pool.free(*parcel);
  }
}

}  // namespace millrace::vswitch
