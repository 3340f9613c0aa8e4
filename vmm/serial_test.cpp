#include "vmm/serial.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace millrace::vmm {

namespace {

class SerialTest : public testing::Test {
 protected:
  std::uint8_t get(unsigned at) {
    std::uint8_t value = 0;
    serial.read(at, std::as_writable_bytes(std::span{&value, 1}));
    return value;
  }
  void set(unsigned at, std::uint8_t value) {
    serial.write(at, std::as_bytes(std::span{&value, 1}));
  }
  std::size_t receive(const std::string& text) {
    return serial.receive(std::as_bytes(std::span{text}));
  }
  std::string sent;
  std::vector<bool> edges;
  unsigned rooms = 0;
  Serial serial{{.interrupt = [this](bool high) { edges.push_back(high); },
                 .transmit = [this](std::byte byte) { sent += static_cast<char>(byte); },
                 .room = [this] { ++rooms; }}};
};

TEST_F(SerialTest, SendsWhatIsWritten) {
  for (const char letter : std::string{"hello"}) set(0, static_cast<std::uint8_t>(letter));
  EXPECT_EQ(sent, "hello");
  EXPECT_EQ(get(5), 0x60);
  EXPECT_TRUE(edges.empty());
}

TEST_F(SerialTest, IsFoundToBeA16550A) {
  set(2, 1);
  EXPECT_EQ(get(2) & 0xe0, 0xc0);
  set(7, 0x5a);
  EXPECT_EQ(get(7), 0x5a);
  set(3, 0x83);
  set(0, 1);
  set(1, 2);
  EXPECT_EQ(get(0), 1);
  EXPECT_EQ(get(1), 2);
  set(3, 3);
  EXPECT_EQ(get(1), 0);  // the latch hid the interrupt enables
  EXPECT_EQ(sent, "");
}

TEST_F(SerialTest, TheTransmitterInterruptIsDueOnceAndAcknowledgedByItsIdentity) {
  set(1, 2);
  EXPECT_EQ(edges, (std::vector<bool>{true}));
  EXPECT_EQ(get(2), 2);
  EXPECT_EQ(get(2), 1);
  EXPECT_EQ(edges, (std::vector<bool>{true, false}));
  set(0, 'x');
  EXPECT_EQ(edges.size(), 3u);
  set(1, 0);
  EXPECT_EQ(edges.size(), 4u);
  set(1, 2);  // asking again makes it due again
  EXPECT_EQ(edges.size(), 5u);
}

TEST_F(SerialTest, InputInterruptsUntilItIsTaken) {
  set(1, 1);
  EXPECT_EQ(receive("ab"), 2u);
  EXPECT_EQ(edges, (std::vector<bool>{true}));
  EXPECT_EQ(get(2) & 0xf, 4);
  EXPECT_EQ(get(5) & 1, 1);
  EXPECT_EQ(get(0), 'a');
  EXPECT_EQ(edges.size(), 1u);
  EXPECT_EQ(get(0), 'b');
  EXPECT_EQ(edges, (std::vector<bool>{true, false}));
  EXPECT_EQ(get(0), 0);
  receive("c");
  set(2, 3);  // clears the input
  EXPECT_EQ(get(5) & 1, 0);
}

TEST_F(SerialTest, InputIsBoundedAndSaysWhenThereIsRoomAgain) {
  EXPECT_EQ(receive(std::string(5000, 'x')), Serial::input_max);
  EXPECT_EQ(receive("y"), 0u);
  for (std::size_t i = 0; i < Serial::input_max; ++i) get(0);
  EXPECT_EQ(rooms, 1u);
  EXPECT_EQ(receive("y"), 1u);
}

TEST_F(SerialTest, LoopsBack) {
  set(4, 0x1f);
  EXPECT_EQ(get(6), 0xf0);
  set(4, 0x12);
  EXPECT_EQ(get(6), 0x10);
  set(0, 'q');
  EXPECT_EQ(sent, "");
  EXPECT_EQ(get(0), 'q');
  set(4, 0);
  EXPECT_EQ(get(6), 0xb0);
}

}  // namespace

}  // namespace millrace::vmm
