#include "switch/direct_pool.hpp"

#include <rte_errno.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/check.hpp"

namespace millrace::vswitch {

namespace {

constexpr const char* operations_name = "millrace_direct";

// Of an mbuf without private data.
std::byte* home(rte_mbuf& mbuf) noexcept {
  return reinterpret_cast<std::byte*>(&mbuf + 1);
}

}  // namespace

struct DirectPool::Operations {
  static DirectPool& of(const rte_mempool* pool) noexcept {
    return *static_cast<DirectPool*>(pool->pool_config);
  }
  static int alloc(rte_mempool* pool) {
    pool->pool_data = pool->pool_config;
    return 0;
  }
  static void free(rte_mempool*) {}
  static int enqueue(rte_mempool* pool, void* const* objects, unsigned count) {
    auto& mbufs = of(pool).free_;
    CHECK(mbufs.size() + count <= mbufs.capacity());
    for (unsigned i = 0; i < count; ++i) mbufs.push_back(static_cast<rte_mbuf*>(objects[i]));
    return 0;
  }
  static int dequeue(rte_mempool* pool, void** objects, unsigned count) {
    return of(pool).get(objects, count);
  }
  static unsigned count(const rte_mempool* pool) {
    return static_cast<unsigned>(of(pool).free_.size());
  }
  // Once for the process: DPDK keeps a copy under a name.
  static int enter() {
    rte_mempool_ops operations{};
    std::snprintf(operations.name, sizeof operations.name, "%s", operations_name);
    operations.alloc = alloc;
    operations.free = free;
    operations.enqueue = enqueue;
    operations.dequeue = dequeue;
    operations.get_count = count;
    return rte_mempool_register_ops(&operations);
  }
};

base::Result<std::unique_ptr<DirectPool>> DirectPool::make(const std::string& name,
                                                           unsigned mbufs) {
  static const int entered = Operations::enter();
  const auto refuse = [](int reason) {
    return base::fail(std::string{"cannot make a receive pool: "} + std::strerror(reason));
  };
  if (entered < 0) return refuse(-entered);
  std::unique_ptr<DirectPool> made{new DirectPool};
  made->free_.reserve(mbufs);
  constexpr unsigned element = sizeof(rte_mbuf) + RTE_MBUF_DEFAULT_BUF_SIZE;
  made->pool_ = rte_mempool_create_empty(name.c_str(), mbufs, element, 0,
                                         sizeof(rte_pktmbuf_pool_private), SOCKET_ID_ANY, 0);
  if (made->pool_ == nullptr) return refuse(rte_errno);
  if (const int r = rte_mempool_set_ops_byname(made->pool_, operations_name, made.get()); r != 0) {
    return refuse(-r);
  }
  rte_pktmbuf_pool_init(made->pool_, nullptr);
  if (const int r = rte_mempool_populate_default(made->pool_); r < 0) return refuse(-r);
  rte_mempool_obj_iter(made->pool_, rte_pktmbuf_init, nullptr);
  made->size_ = made->free_.size();
  return made;
}

DirectPool::~DirectPool() {
  rte_mempool_free(pool_);
}

int DirectPool::get(void** objects, unsigned count) noexcept {
  if (free_.size() < count) return -ENOBUFS;
  for (unsigned i = 0; i < count; ++i) {
    rte_mbuf& mbuf = *free_[free_.size() - 1 - i];
    if (source_ == nullptr) {
      put_at_home(mbuf);
    } else if (!source_->place(mbuf)) {
      for (; i > 0; --i) {
        if (!is_at_home(*static_cast<rte_mbuf*>(objects[i - 1]))) source_->unplace();
      }
      return -ENOBUFS;
    }
    objects[i] = &mbuf;
  }
  free_.resize(free_.size() - count);
  return 0;
}

// The driver has the device write behind the headroom.
void DirectPool::put_at(rte_mbuf& mbuf, std::byte* place, std::uint64_t iova) noexcept {
  mbuf.buf_addr = place - RTE_PKTMBUF_HEADROOM;
  mbuf.buf_iova = iova - RTE_PKTMBUF_HEADROOM;
}

void DirectPool::put_at_home(rte_mbuf& mbuf) noexcept {
  mbuf.buf_addr = home(mbuf);
  mbuf.buf_iova = rte_mempool_virt2iova(&mbuf) + sizeof(rte_mbuf);
}

bool DirectPool::is_at_home(const rte_mbuf& mbuf) noexcept {
  return mbuf.buf_addr == reinterpret_cast<const std::byte*>(&mbuf + 1);
}

}  // namespace millrace::vswitch
