#!/usr/bin/perl
# Looks for secrets in files: scan.pl FILE... with the secrets on stdin, one per line, each in hexadecimal.
# Prints every file that holds one, and exits with 1 if there is any. What cannot be read is passed over: it
# belongs to another user; if that is all, nothing was looked for. perl is on every Debian machine, and searches binary
# files for binary strings.
use strict;
use warnings;

my @secrets = map { chomp; pack 'H*', $_ } <STDIN>;
die "no secrets to look for\n" if !@secrets || grep { length($_) < 16 } @secrets;
my $longest = (sort { $b <=> $a } map { length } @secrets)[0];
my ($looked, $found) = (0, 0);
FILE: for my $file (@ARGV) {
    open my $in, '<:raw', $file or next;
    $looked++;
    my $kept = '';
    while (read $in, my $chunk, 1 << 20) {
        $kept .= $chunk;
        for my $secret (@secrets) {
            if (index($kept, $secret) >= 0) {
                print "$file\n";
                $found = 1;
                next FILE;
            }
        }
        $kept = substr $kept, -$longest if length $kept > $longest;
    }
}
die "nothing was looked at\n" if !$looked;
exit $found;
