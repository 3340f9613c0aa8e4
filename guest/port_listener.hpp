// PortListener: the socket of a console port, as a path of the host. Thread: control.
#pragma once

#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace millrace::guest {

class PortListener {
 public:
  // Binds and listens. A socket file that nobody listens on is replaced; anything else there is an
  // error in one line.
  static base::Result<PortListener> open(const std::string& path, unsigned permissions);
  PortListener(PortListener&& other) noexcept;
  PortListener& operator=(PortListener&&) = delete;
  // Takes the file away.
  ~PortListener();

  [[nodiscard]] int fd() const { return socket_.get(); }
  // One who waits, non-blocking; invalid: nobody does.
  [[nodiscard]] base::Fd accept() const;

 private:
  PortListener(base::Fd socket, std::string path);
  base::Fd socket_;
  std::string path_;
};

}  // namespace millrace::guest
