/* LD_PRELOAD: while the file FAIL_FLAG exists, FAIL_CALL (fsync, write or rename) fails with FAIL_ERRNO for paths that hold
   FAIL_PATH; a write has written half by then. With FAIL_ONCE the first failure removes the flag. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
  const char *flag = getenv("FAIL_FLAG"), *part = getenv("FAIL_PATH"), *wanted = getenv("FAIL_CALL");
  if (!flag || !part || !wanted || strcmp(wanted, call) || !strstr(path, part) || access(flag, F_OK)) return 0;
  if (getenv("FAIL_ONCE")) unlink(flag);
  return atoi(getenv("FAIL_ERRNO"));
}

static const char *path_of(int fd) {
  static char path[4096];
  char name[64];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(name, path, sizeof path - 1);
  path[size < 0 ? 0 : size] = 0;
  return path;
}

int fsync(int fd) {
  int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
  int error = fails("fsync", path_of(fd));
  if (!error) return real(fd);
  errno = error;
  return -1;
}

ssize_t write(int fd, const void *data, size_t size) {
  ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
  int error = fails("write", path_of(fd));
  if (!error) return real(fd, data, size);
  if (size > 1) return real(fd, data, size / 2);
  errno = error;
  return -1;
}

int rename(const char *from, const char *to) {
  int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
  int error = strstr(from, ".new-") ? fails("rename", to) : 0;
  if (!error) return real(from, to);
  errno = error;
  return -1;
}
