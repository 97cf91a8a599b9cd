#!/bin/sh
# A verifier for layerhold (`verifier` of an [[upstream]]): lets an image pass that cosign finds a signature on.
#
# It is run as `verify-cosign.sh IMAGE REFERENCE`, where IMAGE is registry/repository@digest and REFERENCE the tag or digest that
# was asked for; the same is on its standard input as a JSON object. It ends with 0 for yes, with 1 for no; anything else is no
# answer. The first line that it prints is for layerhold's log.
#
# cosign asks the registry itself. It must not be led to this layerhold for it: that would ask here again.
#
# The reference is for the log. A yes is a yes to the digest, by whatever tag it was asked for; so what has the tag of a signature
# (sha256-….sig) is no exception, or an image under such a tag as well would be let pass. Whoever wants to see signatures asks the
# registry, too.
set -u

if said=$(cosign verify --key "${COSIGN_KEY:-/etc/layerhold/cosign.pub}" "$1" 2>&1); then
    echo 'signed'
    exit 0
fi
# cosign does not tell a registry that is down from a signature that is missing: both are no, for half a minute.
printf '%s\n' "$said" | grep -v '^$' | tail -n 1
exit 1
