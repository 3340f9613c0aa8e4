#include "bench/capture.hpp"

#include <array>
#include <cstdint>
#include <fstream>
#include <utility>

namespace millrace::bench {

namespace {

constexpr std::uint32_t magic = 0xa1b2'c3d4;

}  // namespace

base::Result<FrameSet> read_capture(const std::string& path) {
  std::ifstream file{path, std::ios::binary};
  std::array<std::uint32_t, 6> head{};
  if (!file.read(reinterpret_cast<char*>(head.data()), sizeof head) || head[0] != magic) {
    return base::fail(path + " is not a capture (pcap)");
  }
  FrameSet frames;
  std::array<std::uint32_t, 4> record{};  // seconds, microseconds, bytes here, bytes of the frame
  while (file.read(reinterpret_cast<char*>(record.data()), sizeof record)) {
    std::string frame(record[2] <= 1u << 17 ? record[2] : 0, '\0');
    if (frame.size() != record[3] ||
        !file.read(frame.data(), static_cast<std::streamsize>(frame.size()))) {
      return base::fail(path + ": a frame of this capture is cut off");
    }
    frames.insert(std::move(frame));
  }
  if (frames.empty()) return base::fail(path + ": there is no frame in this capture");
  return frames;
}

std::string whole_of(std::span<const std::span<const std::byte>> pieces) {
  std::string whole;
  for (const auto& piece : pieces) {
    whole.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  }
  return whole;
}

}  // namespace millrace::bench
