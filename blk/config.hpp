// blk::Config: what one guest disk is. Filled by daemon/ from TOML or a command.
#pragma once

#include <cstdint>
#include <string>

namespace millrace::blk {

inline constexpr unsigned queues_max = 256;

enum class BackendKind { file, ram, null };
enum class DirectMode { automatic, on, off };  // O_DIRECT: when it works, or refuse, or never
// Guest memory as registered buffers of io_uring: never, where the kernel can, or refuse.
enum class PinMode { off, automatic, on };
// Completions looked for on the device, not by interrupt: where it has such queues, or refuse.
enum class PollMode { off, automatic, on };

struct Config {
  std::string name;
  BackendKind backend = BackendKind::file;
  std::string path;        // file and block device
  std::uint64_t size = 0;  // ram, null: bytes, a multiple of 512
  unsigned queues = 1;     // 1..queues_max
  bool readonly = false;
  std::string serial;  // GET_ID, at most 20 bytes; empty: the name's first 20
  DirectMode direct = DirectMode::automatic;
  PinMode pin = PinMode::off;
  PollMode iopoll = PollMode::automatic;
  bool write_cache = true;                 // CONFIG_WCE's start value: write-back with FLUSH
  std::uint32_t block_size = 0;            // 0: the backend's logical block size
  std::uint32_t segments_max = 126;        // SEG_MAX
  std::uint32_t size_max = 0;              // SIZE_MAX, bytes of one segment; 0: not offered
  std::uint32_t discard_segments_max = 0;  // 0: the backend's (multi-segment)
  std::uint64_t discard_sectors_max = 0;   // 0: the backend's
  bool packed = true, in_order = false;    // offer RING_PACKED, IN_ORDER
  bool ring_reset = false;  // offer RING_RESET: the front-end stops a queue that its guest resets
};

}  // namespace millrace::blk
