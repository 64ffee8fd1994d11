/* The least that a function of the file contract does: read the request, write a result. */
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static char request[65536];
    static const char result[] = "{\"body\":1}";
    int in = open(argc > 1 ? argv[1] : "/request.json", O_RDONLY);
    if (in < 0 || read(in, request, sizeof request) < 0) return 1;
    int out = open(argc > 2 ? argv[2] : "/result.json", O_WRONLY);
    if (out < 0 || write(out, result, sizeof result - 1) != sizeof result - 1) return 2;
    return 0;
}
