/* Debian's archives are compiled against glibc with _FORTIFY_SOURCE, whose checking functions musl
 * does not have. The size of the destination, which they would check, is given by `size` already:
 * the callers' own bound is what holds. */

#include <stdarg.h>
#include <stdio.h>

int __snprintf_chk(char *text, size_t size, int flag, size_t room, const char *format, ...)
{
	va_list arguments;
	int written;

	(void)flag;
	va_start(arguments, format);
	written = vsnprintf(text, size < room ? size : room, format, arguments);
	va_end(arguments);
	return written;
}

int __fprintf_chk(FILE *file, int flag, const char *format, ...)
{
	va_list arguments;
	int written;

	(void)flag;
	va_start(arguments, format);
	written = vfprintf(file, format, arguments);
	va_end(arguments);
	return written;
}
