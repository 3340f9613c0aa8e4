// Claim: 100 idle NICs and 100 idle disks, connected and started, cost under 1 % of a core; then a
// packet and a read to each of the 200 complete.
//
//   build/bench/idle [--daemon build/millraced] [--devices 100] [--seconds 60] [--budget 1.0]
//   [--json]
//
// Starts a daemon of its own in a temporary folder, connects all devices over their sockets with
// their rings filled as a driver fills them, waits, and reads the daemon's processor time from the
// kernel. Exit status: 0 within the budget and all completed; 1 not; 2 usage or set-up.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "bench/socket_guest.hpp"
#include "virtio/features.hpp"
#include "virtio/wire/blk.hpp"
#include "virtio/wire/net.hpp"

namespace millrace::bench {
namespace {

namespace wire = virtio::wire;
using namespace std::chrono_literals;

constexpr std::uint16_t ring_size = 64;
constexpr std::uint32_t buffer_size = 2048, frame_size = 60;

struct Options {
  std::string daemon = "build/millraced";
  unsigned devices = 100, seconds = 60;
  double budget = 1.0;
  bool json = false;
};

// A temporary folder that goes away with its owner.
struct Folder {
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "millrace-idle-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::filesystem::path path;
};

class Daemon {
 public:
  Daemon(const Options& options, const std::filesystem::path& folder) {
    const auto config = folder / "millrace.toml";
    write_config(config, folder, options.devices);
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::execl(options.daemon.c_str(), options.daemon.c_str(), "--config", config.c_str(), nullptr);
      std::perror(options.daemon.c_str());
      ::_exit(127);
    }
  }
  ~Daemon() { stop(); }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Exit status, or -1 if it did not exit by itself.
  int stop() {
    if (pid_ < 0) return 0;
    ::kill(pid_, SIGTERM);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  // Processor time used so far, user and system, all threads.
  [[nodiscard]] double cpu_seconds() const {
    std::ifstream stat{"/proc/" + std::to_string(pid_) + "/stat"};
    std::string text;
    std::getline(stat, text);
    std::istringstream fields{text.substr(text.rfind(')') + 2)};
    std::string skipped;
    double user = 0, system = 0;
    for (int i = 0; i < 11; ++i) fields >> skipped;
    fields >> user >> system;
    return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  }

 private:
  static void write_config(const std::filesystem::path& file, const std::filesystem::path& folder,
                           unsigned devices) {
    std::ofstream out{file};
    out << "[control]\nsocket = \"" << (folder / "control.sock").string() << "\"\n";
    for (unsigned i = 0; i < devices; ++i) {
      const auto n = std::to_string(i);
      out << "[[port]]\nname = \"n" << n << "\"\nsocket = \"" << (folder / ("n" + n)).string()
          << "\"\n[[disk]]\nname = \"d" << n << "\"\nsocket = \"" << (folder / ("d" + n)).string()
          << "\"\nbackend = \"null\"\nsize = \"1GiB\"\n";
    }
  }
  pid_t pid_ = -1;
};

using Guests = std::vector<std::unique_ptr<SocketGuest>>;

// Receive queue filled to the brim, transmit queue empty: what a driver leaves behind.
base::Result<void> connect_all(const Options& options, const std::filesystem::path& folder,
                               Guests& nics, Guests& disks) {
  const auto ring_features = virtio::feature::event_idx | virtio::feature::indirect_desc;
  for (unsigned i = 0; i < options.devices; ++i) {
    const auto n = std::to_string(i);
    auto nic = SocketGuest::connect((folder / ("n" + n)).string(), 2, ring_size,
                                    ring_features | wire::net_feature::mrg_rxbuf, 10s);
    if (!nic) return base::Unexpected{nic.error()};
    for (std::uint16_t slot = 0; slot < ring_size; ++slot) {
      (*nic)->set_descriptor(0, slot, (*nic)->allocate(buffer_size), buffer_size, true, false);
      (*nic)->offer(0, slot);
    }
    (*nic)->kick(0);
    nics.push_back(*std::move(nic));
    auto disk =
        SocketGuest::connect((folder / ("d" + n)).string(), 1, ring_size, ring_features, 10s);
    if (!disk) return base::Unexpected{disk.error()};
    disks.push_back(*std::move(disk));
  }
  return {};
}

std::array<std::uint8_t, 6> mac_of(unsigned index) {
  return {0x02, 0, 0, 0, static_cast<std::uint8_t>(index >> 8), static_cast<std::uint8_t>(index)};
}

// Sends one unicast frame from NIC `from`; its transmit queue has one buffer.
void send_frame(SocketGuest& nic, const std::array<std::uint8_t, 6>& to,
                const std::array<std::uint8_t, 6>& from) {
  const auto buffer = nic.allocate(sizeof(wire::NetHeader) + frame_size);
  auto* bytes = nic.at(buffer);
  std::memset(bytes, 0, sizeof(wire::NetHeader) + frame_size);
  std::memcpy(bytes + sizeof(wire::NetHeader), to.data(), 6);
  std::memcpy(bytes + sizeof(wire::NetHeader) + 6, from.data(), 6);
  bytes[sizeof(wire::NetHeader) + 12] = std::byte{0x88};
  bytes[sizeof(wire::NetHeader) + 13] = std::byte{0xb5};  // IEEE 802 local experimental
  nic.set_descriptor(1, 0, buffer, sizeof(wire::NetHeader) + frame_size, false, false);
  nic.offer(1, 0);
  nic.kick(1);
}

// Takes one frame, gives its buffer back, and says whether it came from `from`.
std::optional<bool> take_frame(SocketGuest& nic, const std::array<std::uint8_t, 6>& from,
                               std::chrono::milliseconds timeout) {
  const auto done = nic.wait(0, timeout);
  if (!done) return std::nullopt;
  const auto* source = nic.at(nic.descriptor_address(0, done->id)) + sizeof(wire::NetHeader) + 6;
  const bool mine = std::memcmp(source, from.data(), from.size()) == 0;
  nic.offer(0, static_cast<std::uint16_t>(done->id));
  return mine;
}

bool received(SocketGuest& nic, const std::array<std::uint8_t, 6>& from) {
  while (const auto mine = take_frame(nic, from, 2s)) {
    if (*mine) return true;
  }
  return false;
}

// Each NIC gets one frame, from its neighbour. The first to an address floods: everybody drains.
unsigned packets_through(Guests& nics) {
  unsigned good = 0;
  const auto count = static_cast<unsigned>(nics.size());
  for (unsigned i = 0; i < count; ++i) {
    const unsigned to = (i + 1) % count;
    send_frame(*nics[i], mac_of(to), mac_of(i));
    good += received(*nics[to], mac_of(i)) ? 1 : 0;
    for (auto& nic : nics) {
      while (take_frame(*nic, mac_of(i), 0ms)) {
      }
    }
  }
  return good;
}

unsigned reads_through(Guests& disks) {
  unsigned good = 0;
  for (auto& disk : disks) {
    const auto header = disk->allocate(sizeof(wire::BlkHeader));
    const auto data = disk->allocate(4096, 4096);
    const auto status = disk->allocate(1);
    std::memset(disk->at(header), 0, sizeof(wire::BlkHeader));
    std::memset(disk->at(data), 0xff, 4096);
    *disk->at(status) = std::byte{0xff};
    disk->set_descriptor(0, 0, header, sizeof(wire::BlkHeader), false, true);
    disk->set_descriptor(0, 1, data, 4096, true, true);
    disk->set_descriptor(0, 2, status, 1, true, false);
    disk->offer(0, 0);
    disk->kick(0);
    const auto done = disk->wait(0, 2s);
    good += done && done->length == 4097 && *disk->at(status) == std::byte{0} &&
                    *disk->at(data) == std::byte{0}
                ? 1
                : 0;
  }
  return good;
}

int measure(const Options& options) {
  const Folder folder;
  Daemon daemon{options, folder.path};
  Guests nics, disks;
  if (auto done = connect_all(options, folder.path, nics, disks); !done) {
    std::fprintf(stderr, "idle: %s\n", done.error().message.c_str());
    return 2;
  }
  std::this_thread::sleep_for(1s);  // the spin after the last kick is not idleness
  const double before = daemon.cpu_seconds();
  std::this_thread::sleep_for(std::chrono::seconds{options.seconds});
  const double percent = 100 * (daemon.cpu_seconds() - before) / options.seconds;
  const auto packets = packets_through(nics), reads = reads_through(disks);
  nics.clear();
  disks.clear();
  const int status = daemon.stop();
  const bool good = percent < options.budget && packets == options.devices &&
                    reads == options.devices && status == 0;
  if (options.json) {
    std::printf(
        "{\"devices\": %u, \"seconds\": %u, \"cpu_percent\": %.3f, \"packets\": %u, "
        "\"reads\": %u, \"daemon_exit\": %d, \"good\": %s}\n",
        options.devices, options.seconds, percent, packets, reads, status, good ? "true" : "false");
  } else {
    std::printf(
        "%u + %u devices, %u s: %.3f %% of a core; then %u packets and %u reads completed; "
        "daemon exit %d: %s\n",
        options.devices, options.devices, options.seconds, percent, packets, reads, status,
        good ? "good" : "NOT GOOD");
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  millrace::bench::Options options;
  CLI::App app{"Processor time of idle devices"};
  app.add_option("--daemon", options.daemon, "the millraced to measure");
  app.add_option("--devices", options.devices, "NICs, and as many disks")
      ->check(CLI::Range(2, 1000));
  app.add_option("--seconds", options.seconds, "how long to watch")->check(CLI::Range(1, 3600));
  app.add_option("--budget", options.budget, "percent of a core");
  app.add_flag("--json", options.json, "one JSON object");
  CLI11_PARSE(app, argc, argv);
  return millrace::bench::measure(options);
}
