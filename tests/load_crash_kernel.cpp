// Runs in a guest: has its kernel load the kernel that runs when it panics, as `kexec -s -p` does
// (kexec_file_load(2)), without the libraries of the program of that name.
#include <fcntl.h>
#include <linux/kexec.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

int main(int count, char** words) {
  if (count != 4) {
    std::fprintf(stderr, "usage: %s KERNEL INITRD CMDLINE\n", words[0]);
    return 2;
  }
  const int kernel = ::open(words[1], O_RDONLY | O_CLOEXEC);
  const int initrd = ::open(words[2], O_RDONLY | O_CLOEXEC);
  if (kernel < 0 || initrd < 0) {
    std::perror("open");
    return 1;
  }
  if (::syscall(SYS_kexec_file_load, kernel, initrd, std::strlen(words[3]) + 1, words[3],
                KEXEC_FILE_ON_CRASH) != 0) {
    std::perror("kexec_file_load");
    return 1;
  }
  return 0;
}
