// Frames of a capture file (pcap), to compare others with.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <unordered_set>

#include "base/result.hpp"

namespace millrace::bench {

using FrameSet = std::unordered_set<std::string>;

// All frames of the capture at `path`, which has this machine's byte order. Fails in one line: it
// cannot be read, is no capture, or has none or not all of a frame.
base::Result<FrameSet> read_capture(const std::string& path);

// A frame that came in pieces.
std::string whole_of(std::span<const std::span<const std::byte>> pieces);

}  // namespace millrace::bench
